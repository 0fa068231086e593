//! `ds4-coord certs`: creates and renews the certificates of a cluster, and replaces its authority.

mod folder;
mod renewal;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use ds4_cli::print;
use ds4_proto::tls::{Role, TlsFiles, utc};

use crate::authority::{Authority, Issued, check_name};
use folder::{Access, CA, path, read_authority, same, write};

const COORDINATOR: &str = "coordinator";

const EXAMPLES: &str = "\
Examples:
  # A new cluster
  ds4-coord certs --out certs --coordinator coord.lan,10.0.0.10 \\
      --node node-0,10.0.0.11 --node node-1,10.0.0.12

  # One more node for it
  ds4-coord certs --out certs --ca certs --node node-2,10.0.0.13

  # All members once more, before their certificates end
  ds4-coord certs --out certs --renew";

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
    #[arg(
        long = "node",
        value_name = "NAME[,HOST|IP]...",
        required_unless_present = "upkeep",
        conflicts_with = "upkeep",
        value_parser = names
    )]
    pub nodes: Vec<Names>,

    /// DNS names and IP addresses at which nodes reach the coordinator [default: localhost; with
    /// --ca, no coordinator's certificate is created]
    #[arg(long, value_name = "HOST|IP,...", conflicts_with = "upkeep", value_parser = names)]
    pub coordinator: Option<Names>,

    /// Folder with the authority of an existing cluster, to add members to it [default: create a
    /// new authority]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["rotate_authority", "finish_rotation"])]
    pub ca: Option<PathBuf>,

    /// Issue every member's certificate in --out again, with a fresh key, for the names that it has;
    /// with --ca if the authority is in another folder
    #[arg(long, group = "upkeep")]
    pub renew: bool,

    /// Begin to replace the authority in --out: from here on a new one issues certificates, and
    /// ca.pem has both, so that members can trust both until all are renewed
    #[arg(long, group = "upkeep")]
    pub rotate_authority: bool,

    /// End the replacement of the authority in --out, once its members were renewed: ca.pem has the
    /// new one alone
    #[arg(long, group = "upkeep")]
    pub finish_rotation: bool,

    /// Days for which the members' certificates are valid, less up to a tenth that depends on the
    /// member's name, so that they do not end together; the authority's is valid for ten years
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
    let report = match () {
        () if args.renew => renewal::renew(&args.out, args.ca.as_deref(), args.days)?,
        () if args.rotate_authority => renewal::rotate(&args.out)?,
        () if args.finish_rotation => renewal::finish(&args.out)?,
        () => create(args)?,
    };
    Ok(print(report)?)
}

fn create(args: &CertsArgs) -> Result<String> {
    let plan = CertPlan::new(args)?;
    let authority = match &args.ca {
        None => Authority::generate()?,
        Some(folder) => read_authority(folder)?,
    };
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the folder {}", args.out.display()))?;
    // While the authority is being replaced, the file has the certificates of both.
    let trusted = match &args.ca {
        None => authority.certificate().to_owned(),
        Some(folder) => folder::trusted(folder)?,
    };
    let kept = args.ca.as_deref().is_some_and(|ca| same(ca, &args.out));
    if !kept {
        let file = path(&args.out, CA, "pem");
        let other = std::fs::read(&file).is_ok_and(|old| old != trusted.as_bytes());
        ensure!(
            args.force || !other,
            "{} belongs to another authority; use --force to replace it",
            file.display()
        );
        write(&file, &trusted, Access::Everyone)?;
        if args.ca.is_none() {
            write(&path(&args.out, CA, "key"), authority.key(), Access::Owner)?;
        }
    }
    let mut text = String::new();
    for member in &plan.members {
        let issued = member.issue(&authority, &args.out, args.days)?;
        text += &member.report(&args.out, &issued);
    }
    if args.ca.is_none() {
        let out = args.out.display();
        text += &format!(
            "Keep {out}/ca.key off every member: it signs their certificates. To add members \
             later, use --ca {out}; to renew them, --out {out} --renew.\n"
        );
    }
    Ok(text)
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
    /// Issues the certificate, writes the two files, and reads them back as the member will.
    fn issue(&self, authority: &Authority, folder: &Path, days: u64) -> Result<Issued> {
        let issued = authority.issue(self.role, &self.file, &self.names, days);
        let issued =
            issued.with_context(|| format!("cannot issue the certificate of {}", self.file))?;
        let files = self.files(folder);
        write(&files.key, &issued.key, Access::Owner)?;
        write(&files.cert, &issued.certificate, Access::Everyone)?;
        files.load(self.role)?;
        Ok(issued)
    }

    fn files(&self, folder: &Path) -> TlsFiles {
        TlsFiles {
            ca: path(folder, CA, "pem"),
            cert: path(folder, &self.file, "pem"),
            key: path(folder, &self.file, "key"),
        }
    }

    /// Which files it takes, and until when.
    fn report(&self, folder: &Path, issued: &Issued) -> String {
        let Member { role, file, names } = self;
        let out = folder.display();
        format!(
            "{role} {file}, valid until {} as {}:\n    --tls-ca {out}/ca.pem --tls-cert \
             {out}/{file}.pem --tls-key {out}/{file}.key\n",
            utc(issued.not_after),
            names.join(", ")
        )
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
