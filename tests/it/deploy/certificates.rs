//! Certificates and secrets, made by the commands of the instructions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::readme::commands;
use crate::cluster::COORD;

/// Makes the certificates in `folder`, and in it a folder for each secret with the secret's name.
pub(super) fn make(folder: &Path) -> Result<()> {
    for words in commands() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["ds4-coord", "certs", ..] => {
                let output = Command::new(COORD)
                    .args(&words[1..])
                    .current_dir(folder)
                    .stdin(Stdio::null())
                    .output()?;
                let error = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "{words:?}: {error}");
            }
            ["kubectl", "create", "secret", "generic", name, ..] => {
                secret(folder, name, &words[5..]).with_context(|| name.to_owned())?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn secret(folder: &Path, name: &str, files: &[&str]) -> Result<()> {
    let to: PathBuf = folder.join(name);
    std::fs::create_dir(&to)?;
    for file in files {
        let file = file.strip_prefix("--from-file=").context("--from-file")?;
        let (key, from) = file.split_once('=').context("key=file")?;
        std::fs::copy(folder.join(from), to.join(key)).with_context(|| from.to_owned())?;
    }
    Ok(())
}
