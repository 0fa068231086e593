//! Renews members, and replaces the authority while its members run:
//!
//! ```text
//! ca.pem: old        old, new            old, new                          new
//!         ──► rotate ──► copy ca.pem ──► renew ──► copy members' files ──► finish ──► copy ca.pem
//! signs:  old        new                 new                               new
//! ```
//!
//! Each copy has to reach every member before the next step.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ds4_proto::tls::{CertificateFacts, TlsFiles, role_of};

use super::Member;
use super::folder::{Access, CA, path, read, read_authority, same, trusted, write};
use crate::authority::Authority;

/// File name of an authority's key that is being replaced.
const OLD_CA: &str = "ca-old";

/// How the subjects of this software's certificates begin.
const SUBJECT: &str = "ds4 ";

/// Issues the certificates of all members whose files are in `out` again.
pub(super) fn renew(out: &Path, ca: Option<&Path>, days: u64) -> Result<String> {
    let authority_in = ca.unwrap_or(out);
    let authority = read_authority(authority_in)?;
    let members = members(out)?;
    ensure!(
        !members.is_empty(),
        "{} holds no member's certificate to renew",
        out.display()
    );
    if !same(authority_in, out) {
        write(
            &path(out, CA, "pem"),
            &trusted(authority_in)?,
            Access::Everyone,
        )?;
    }
    let mut text = String::new();
    for member in &members {
        let issued = member.issue(&authority, out, days)?;
        text += &member.report(out, &issued);
    }
    text += "Copy each member its files: running members read them again by themselves.\n";
    Ok(text)
}

/// Makes a new authority beside the old one.
pub(super) fn rotate(out: &Path) -> Result<String> {
    let old = read_authority(out)?;
    let trusted = trusted(out)?;
    let certificates = CertificateFacts::of_pem(trusted.as_bytes()).len();
    ensure!(
        certificates == 1,
        "{} holds {certificates} certificates, so the authority is being replaced already: finish \
         that first, with --finish-rotation",
        path(out, CA, "pem").display()
    );
    let new = Authority::generate()?;
    // In this order, since a run that is interrupted must leave an authority that can sign.
    write(&path(out, OLD_CA, "key"), old.key(), Access::Owner)?;
    let both = format!("{}\n{}", trusted.trim_end(), new.certificate());
    write(&path(out, CA, "pem"), &both, Access::Everyone)?;
    write(&path(out, CA, "key"), new.key(), Access::Owner)?;
    let out = out.display();
    Ok(format!(
        "{out}/ca.pem has the old and the new authority. Copy it to every member, then run\n    \
         ds4-coord certs --out {out} --renew\nand copy each member its files, then run\n    \
         ds4-coord certs --out {out} --finish-rotation\nand copy {out}/ca.pem to every member. \
         Running members read their files again by themselves.\n"
    ))
}

/// Removes the old authority.
pub(super) fn finish(out: &Path) -> Result<String> {
    let authority = read_authority(out)?;
    let alone = path(out, "ca-alone", "pem");
    write(&alone, authority.certificate(), Access::Everyone)?;
    let checked = members(out).and_then(|members| check_all(&members, out, &alone));
    std::fs::remove_file(&alone).with_context(|| format!("cannot remove {}", alone.display()))?;
    checked?;
    write(
        &path(out, CA, "pem"),
        authority.certificate(),
        Access::Everyone,
    )?;
    match std::fs::remove_file(path(out, OLD_CA, "key")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!(
                "cannot remove {}: {error}",
                path(out, OLD_CA, "key").display()
            )
        }
        _ => {}
    }
    let out = out.display();
    Ok(format!(
        "{out}/ca.pem has the new authority alone. Copy it to every member.\n"
    ))
}

/// Refuses to leave a member without an authority.
fn check_all(members: &[Member], out: &Path, ca: &Path) -> Result<()> {
    for member in members {
        let files = TlsFiles {
            ca: ca.to_owned(),
            ..member.files(out)
        };
        let cert = files.cert.display().to_string();
        files.load(member.role).with_context(|| {
            format!("{cert} cannot be used with the new authority alone: use --renew first")
        })?;
    }
    Ok(())
}

/// The members whose certificates are in a folder, by name.
fn members(folder: &Path) -> Result<Vec<Member>> {
    let entries = std::fs::read_dir(folder);
    let entries = entries.with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let file = entry
            .with_context(|| format!("cannot read {}", folder.display()))?
            .path();
        let pem = file.extension().is_some_and(|kind| kind == "pem");
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        let Some(stem) = stem.filter(|_| pem) else {
            continue;
        };
        // Of a chain the first is the member's.
        let facts = CertificateFacts::of_pem(read(&file)?.as_bytes());
        let Some(facts) = facts.into_iter().next() else {
            continue;
        };
        // Others, such as those of authorities, were not issued to members.
        if let Some(role) = role_of(&facts)
            && facts.subject.starts_with(SUBJECT)
        {
            found.push(Member {
                role,
                file: stem.to_owned(),
                names: facts.names,
            });
        }
    }
    found.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(found)
}
