//! `ds4-coord certs`: the certificates of a cluster.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ds4_proto::tls::{Role, TlsFiles};

use crate::authority::{Authority, Issued, check_name};

const CA: &str = "ca";
const COORDINATOR: &str = "coordinator";

/// Whose certificates to make.
#[derive(Args, Debug)]
pub struct CertsArgs {
    /// Folder for the files; it is made if need be
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// A node: a name for its files, then all names and IP addresses under which coordinators
    /// reach it, comma-separated, `*.` for any one label. Once for each node; nodes that share
    /// a certificate, such as those of a StatefulSet, are one
    #[arg(long = "node", value_name = "NAME[,HOST|IP]...", required = true, value_parser = names)]
    pub nodes: Vec<Names>,

    /// Names and IP addresses under which nodes reach the coordinator [default: localhost; with
    /// --ca, no certificate for a coordinator]
    #[arg(long, value_name = "HOST|IP,...", value_parser = names)]
    pub coordinator: Option<Names>,

    /// Folder of an authority that this command made before, to add members to its cluster
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,

    /// How long the members' certificates are valid; the authority's is for ten years
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub days: u64,

    /// Replace files that exist
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
        false => Err("expected names separated by single commas".to_owned()),
    }
}

/// Makes the certificates, writes them, and prints which files belong where.
///
/// # Errors
/// A name cannot be a file's or a certificate's, a file is there already or cannot be written, or
/// the authority cannot be used.
pub fn run(args: &CertsArgs) -> Result<()> {
    let plan = Plan::new(args)?;
    let authority = match &args.ca {
        None => Authority::generate()?,
        Some(folder) => read_authority(folder)?,
    };
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let kept = args.ca.as_deref().is_some_and(|ca| same(ca, &args.out));
    if !kept {
        let file = path(&args.out, CA, "pem");
        let other = std::fs::read(&file).is_ok_and(|old| old != authority.certificate().as_bytes());
        ensure!(
            args.force || !other,
            "{} is another authority's: --force replaces it",
            file.display()
        );
        write(&file, authority.certificate(), Access::Everybody)?;
        if args.ca.is_none() {
            write(&path(&args.out, CA, "key"), authority.key(), Access::Owner)?;
        }
    }
    for member in &plan.members {
        let issued = authority.issue(member.role, &member.file, &member.names, args.days);
        let issued = issued.with_context(|| format!("the certificate of {}", member.file))?;
        member.write(&args.out, &issued)?;
    }
    plan.print(args);
    Ok(())
}

struct Member {
    role: Role,
    file: String,
    names: Vec<String>,
}

impl Member {
    /// Writes the two files and reads them again as the member will.
    fn write(&self, folder: &Path, issued: &Issued) -> Result<()> {
        let files = TlsFiles {
            ca: path(folder, CA, "pem"),
            cert: path(folder, &self.file, "pem"),
            key: path(folder, &self.file, "key"),
        };
        write(&files.cert, &issued.certificate, Access::Everybody)?;
        write(&files.key, &issued.key, Access::Owner)?;
        files.load(self.role)?;
        Ok(())
    }
}

struct Plan {
    members: Vec<Member>,
}

impl Plan {
    /// Who gets a certificate; nothing has been written if this fails.
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
            ensure!(!twice, "--node {} is named twice", member.file);
            member
                .names
                .iter()
                .try_for_each(|name| check_name(name))
                .with_context(|| format!("the names of {}", member.file))?;
        }
        let plan = Plan { members };
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
                    "{} is there already: --force replaces it, and --ca DIR adds to a cluster",
                    file.display()
                );
            }
        }
        Ok(())
    }

    fn print(&self, args: &CertsArgs) {
        let out = args.out.display();
        for Member { role, file, names } in &self.members {
            println!(
                "{role} {file}, valid for {} days as {}:\n    --tls-ca {out}/ca.pem --tls-cert \
                 {out}/{file}.pem --tls-key {out}/{file}.key",
                args.days,
                names.join(", ")
            );
        }
        if args.ca.is_none() {
            println!(
                "{out}/ca.key makes further members: keep it away from all of them, for --ca {out}"
            );
        }
    }
}

/// Letters, digits, dashes, underscores and dots: the name is a file's.
fn check_file_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    ensure!(
        name.chars().all(plain) && !name.starts_with('.'),
        "--node {name}: its first name is also its files', so it can have letters, digits, dashes \
         and dots; put other names behind it"
    );
    ensure!(
        name != CA,
        "--node {CA}: that is the name of the authority's files"
    );
    Ok(())
}

fn read_authority(folder: &Path) -> Result<Authority> {
    let read = |kind| {
        let file = path(folder, CA, kind);
        std::fs::read_to_string(&file).with_context(|| file.display().to_string())
    };
    let (certificate, key) = (read("pem")?, read("key")?);
    let authority = Authority::from_pem(certificate, &key);
    authority.with_context(|| format!("--ca {}", folder.display()))
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
    Everybody,
    Owner,
}

/// Writes beside the file first: what replaces a key is at no time readable by others, and no
/// file is ever half there.
fn write(file: &Path, text: &str, access: Access) -> Result<()> {
    let mode = match access {
        Access::Everybody => 0o644,
        Access::Owner => 0o600,
    };
    let beside = file.with_extension("new");
    let written = || -> std::io::Result<()> {
        // Whatever an interrupted run left, with whatever access.
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
        bail!("{}: {error}", file.display());
    }
    Ok(())
}
