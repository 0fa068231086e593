//! `ds4-coord certs`: creates the certificates of a cluster.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ds4_cli::print;
use ds4_proto::tls::{Role, TlsFiles};

use crate::authority::{Authority, Issued, check_name};

const CA: &str = "ca";
const COORDINATOR: &str = "coordinator";

const EXAMPLES: &str = "\
Examples:
  # A new cluster
  ds4-coord certs --out certs --coordinator coord.lan,10.0.0.10 \\
      --node node-0,10.0.0.11 --node node-1,10.0.0.12

  # One more node for it
  ds4-coord certs --out certs --ca certs --node node-2,10.0.0.13";

/// Whose certificates to create.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CertsArgs {
    /// Folder to write the files to; created if missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// A node: a name for its files, then the DNS names and IP addresses at which coordinators
    /// reach it, comma-separated; `*.` stands for any one label. Repeat the flag for every node;
    /// nodes that share a certificate, such as those of a StatefulSet, count as one
    #[arg(long = "node", value_name = "NAME[,HOST|IP]...", required = true, value_parser = names)]
    pub nodes: Vec<Names>,

    /// DNS names and IP addresses at which nodes reach the coordinator [default: localhost; with
    /// --ca, no coordinator's certificate is created]
    #[arg(long, value_name = "HOST|IP,...", value_parser = names)]
    pub coordinator: Option<Names>,

    /// Folder with the authority of an existing cluster, to add members to it [default: create a
    /// new authority]
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,

    /// Days for which the members' certificates are valid; the authority's is valid for ten years
    #[arg(
        long,
        default_value_t = 365,
        value_name = "DAYS",
        value_parser = clap::value_parser!(u64).range(1..=3650)
    )]
    pub days: u64,

    /// Replace existing files
    #[arg(long)]
    pub force: bool,
}

/// A comma-separated list with at least one name.
#[derive(Clone, Debug)]
pub struct Names(Vec<String>);

fn names(text: &str) -> Result<Names, String> {
    let names: Vec<String> = text.split(',').map(str::trim).map(str::to_owned).collect();
    match names.iter().all(|name| !name.is_empty()) {
        true => Ok(Names(names)),
        false => Err("expected names separated by commas, none of them empty".to_owned()),
    }
}

/// Creates the certificates, writes them, and prints which files belong where.
///
/// # Errors
/// A name is not valid in a certificate or for a file, a file already exists or cannot be written,
/// or the authority cannot be used.
pub fn run(args: &CertsArgs) -> Result<()> {
    let plan = CertPlan::new(args)?;
    let authority = match &args.ca {
        None => Authority::generate()?,
        Some(folder) => read_authority(folder)?,
    };
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the folder {}", args.out.display()))?;
    let kept = args.ca.as_deref().is_some_and(|ca| same(ca, &args.out));
    if !kept {
        let file = path(&args.out, CA, "pem");
        let other = std::fs::read(&file).is_ok_and(|old| old != authority.certificate().as_bytes());
        ensure!(
            args.force || !other,
            "{} belongs to another authority; use --force to replace it",
            file.display()
        );
        write(&file, authority.certificate(), Access::Everyone)?;
        if args.ca.is_none() {
            write(&path(&args.out, CA, "key"), authority.key(), Access::Owner)?;
        }
    }
    for member in &plan.members {
        let issued = authority.issue(member.role, &member.file, &member.names, args.days);
        let issued =
            issued.with_context(|| format!("cannot issue the certificate of {}", member.file))?;
        member.write(&args.out, &issued)?;
    }
    Ok(print(plan.report(args))?)
}

/// A process that gets a certificate.
struct Member {
    role: Role,
    /// Its files' name, without an extension.
    file: String,
    /// DNS names and IP addresses.
    names: Vec<String>,
}

impl Member {
    /// Writes the two files and reads them back as the member will.
    fn write(&self, folder: &Path, issued: &Issued) -> Result<()> {
        let files = TlsFiles {
            ca: path(folder, CA, "pem"),
            cert: path(folder, &self.file, "pem"),
            key: path(folder, &self.file, "key"),
        };
        write(&files.cert, &issued.certificate, Access::Everyone)?;
        write(&files.key, &issued.key, Access::Owner)?;
        files.load(self.role)?;
        Ok(())
    }
}

/// Everyone who gets a certificate.
struct CertPlan {
    members: Vec<Member>,
}

impl CertPlan {
    /// Checks everything that can be checked before a file is written.
    fn new(args: &CertsArgs) -> Result<Self> {
        let mut members = Vec::new();
        if args.ca.is_none() || args.coordinator.is_some() {
            let names = args.coordinator.as_ref();
            members.push(Member {
                role: Role::Coordinator,
                file: COORDINATOR.to_owned(),
                names: names.map_or_else(|| vec!["localhost".to_owned()], |names| names.0.clone()),
            });
        }
        for Names(names) in &args.nodes {
            members.push(Member {
                role: Role::Node,
                file: names[0].clone(),
                names: names.clone(),
            });
        }
        for (i, member) in members.iter().enumerate() {
            check_file_name(&member.file)?;
            let twice = members[..i].iter().any(|other| other.file == member.file);
            ensure!(!twice, "--node {} is given twice", member.file);
            member
                .names
                .iter()
                .try_for_each(|name| check_name(name))
                .with_context(|| format!("cannot certify {}", member.file))?;
        }
        let plan = CertPlan { members };
        if !args.force {
            plan.check_free(args)?;
        }
        Ok(plan)
    }

    fn check_free(&self, args: &CertsArgs) -> Result<()> {
        let authority = match args.ca {
            None => Some(CA),
            Some(_) => None,
        };
        let files = self.members.iter().map(|member| member.file.as_str());
        for name in files.chain(authority) {
            for kind in ["pem", "key"] {
                let file = path(&args.out, name, kind);
                ensure!(
                    !file.exists(),
                    "{} already exists; use --force to replace it, or --ca DIR to add to a cluster",
                    file.display()
                );
            }
        }
        Ok(())
    }

    /// Which files belong to which member.
    fn report(&self, args: &CertsArgs) -> String {
        let mut text = String::new();
        let out = args.out.display();
        for Member { role, file, names } in &self.members {
            text += &format!(
                "{role} {file}, valid for {} days as {}:\n    --tls-ca {out}/ca.pem --tls-cert \
                 {out}/{file}.pem --tls-key {out}/{file}.key\n",
                args.days,
                names.join(", ")
            );
        }
        if args.ca.is_none() {
            text += &format!(
                "Keep {out}/ca.key off every member: it signs their certificates. To add members \
                 later, use --ca {out}.\n"
            );
        }
        text
    }
}

/// Accepts letters, digits, dashes, underscores and dots, since files get the name.
fn check_file_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    ensure!(
        name.chars().all(plain) && !name.starts_with('.'),
        "--node {name}: the first name also names files, so it may have only letters, digits, '-', \
         '_' and '.'; put other names after it"
    );
    ensure!(
        name != CA,
        "--node {CA}: this name is reserved for the authority's files"
    );
    Ok(())
}

fn read_authority(folder: &Path) -> Result<Authority> {
    let read = |kind| {
        let file = path(folder, CA, kind);
        std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    let (certificate, key) = (read("pem")?, read("key")?);
    let authority = Authority::from_pem(certificate, &key);
    authority.with_context(|| format!("cannot use the authority in {}", folder.display()))
}

fn path(folder: &Path, name: &str, kind: &str) -> PathBuf {
    folder.join(format!("{name}.{kind}"))
}

fn same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[derive(Clone, Copy)]
enum Access {
    /// Everyone may read.
    Everyone,
    /// Only the owner may read.
    Owner,
}

/// Writes to a file beside it first, then renames: a new key is never readable by others, and no
/// file is ever half written.
fn write(file: &Path, text: &str, access: Access) -> Result<()> {
    let mode = match access {
        Access::Everyone => 0o644,
        Access::Owner => 0o600,
    };
    let beside = file.with_extension("new");
    let written = || -> std::io::Result<()> {
        // An interrupted run may have left one, with any access.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut new: File = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        std::fs::rename(&beside, file)
    };
    if let Err(error) = written() {
        bail!("cannot write {}: {error}", file.display());
    }
    Ok(())
}
