//! `ds4-coord plan`: who of a cluster should hold what, and what to expect of it.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use ds4_common::model::synthetic::{Formats, presets};
use ds4_common::model::{Fingerprint, WeightBudget};

use super::assembly::OpenModel;
use super::calibrate::{MeasureArgs, measure};
use super::model_args::{ModelFiles, up_to};
use crate::plan::{
    Assumptions, Bytes, ClusterFile, CoordinatorMachine, Demand, ExtraReplicas, NodeMachine,
    PlacementPlan, plan,
};

mod report;

/// Model, machines and copies.
#[derive(Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    pub files: ModelFiles,

    /// Plan for DeepSeek V4 Flash with Q4_K experts and so many layers, without a file of it
    #[arg(
        long,
        value_name = "LAYERS",
        num_args = 0..=1,
        default_missing_value = "43",
        conflicts_with = "model",
        value_parser = super::model_args::count(1024)
    )]
    pub flash: Option<usize>,

    /// File that lists the machines, as [coordinator] and [[node]]
    #[arg(long, value_name = "FILE.toml")]
    pub cluster: Option<PathBuf>,

    /// Running nodes to measure first, comma-separated; their machines and this one are what is
    /// planned for
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = super::calibrate::address,
        conflicts_with = "cluster"
    )]
    pub calibrate: Vec<String>,

    #[command(flatten)]
    pub how: MeasureArgs,

    /// A node, beside those of the file: name=a,memory=64G, and if known address=, bandwidth=,
    /// link=, rtt= and compute=; repeatable
    #[arg(long = "node", value_name = "PROPERTIES")]
    pub nodes: Vec<NodeMachine>,

    /// The coordinator's machine, in place of the file's: memory=, bandwidth=, link=, compute=
    /// or disk=, comma-separated
    #[arg(long, value_name = "PROPERTIES")]
    pub coordinator: Option<CoordinatorMachine>,

    /// Further copies of every tile, or there is no plan [default: one as far as memory goes]
    #[arg(long, value_name = "N", value_parser = up_to(31))]
    pub replicas: Option<usize>,

    /// Memory of every node to keep free of weights [default: 1.5 GB and 3%]
    #[arg(long, value_name = "BYTES")]
    pub reserve: Option<Bytes>,

    /// Write the plan to this file too
    #[arg(long, value_name = "PLAN.toml")]
    pub out: Option<PathBuf>,
}

/// # Errors
/// The model or the list of machines cannot be used, the model does not fit, or the plan cannot be
/// written.
pub async fn run(args: &PlanArgs) -> Result<()> {
    let plan = make(args).await?;
    let model =
        (args.flash.is_none() && !args.files.model.is_empty()).then(|| &args.files.model[..]);
    print!("{}", report::text(&plan, model, args.out.as_deref()));
    if let Some(out) = &args.out {
        plan.file().write(out)?;
    }
    Ok(())
}

async fn make(args: &PlanArgs) -> Result<PlacementPlan> {
    let mut listed = match &args.cluster {
        Some(path) => ClusterFile::read(path)?,
        None if args.calibrate.is_empty() => ClusterFile::default(),
        None => {
            let measured = measure(&args.calibrate, &args.how).await?;
            measured.complete()?;
            measured.cluster()
        }
    };
    listed.node.extend(args.nodes.iter().cloned());
    if let Some(own) = &args.coordinator {
        listed.coordinator = own.clone();
    }
    ensure!(
        !listed.node.is_empty(),
        "there are no nodes to plan for: list them with --cluster, --calibrate or --node"
    );
    let cluster = listed.resolve(&Assumptions::default(), args.reserve)?;
    let extra = args
        .replicas
        .map_or(ExtraReplicas::AsFit, ExtraReplicas::Exactly);
    Ok(plan(demand(args)?, cluster, extra)?)
}

fn demand(args: &PlanArgs) -> Result<Demand> {
    if let Some(layers) = args.flash {
        let hp = presets::flash(layers);
        let budget = WeightBudget::of_formats(&hp, &Formats::PUBLISHED_Q4)?;
        return Ok(Demand::new(
            "DeepSeek V4 Flash".to_owned(),
            None,
            &hp,
            &budget,
        ));
    }
    let model = OpenModel::open(&args.files)?;
    let budget = WeightBudget::of_model(&model.gguf, &model.hp)?;
    let fingerprint = Fingerprint::of(&model.gguf, &model.hp)?;
    Ok(Demand::new(
        model.name,
        Some(fingerprint),
        &model.hp,
        &budget,
    ))
}
