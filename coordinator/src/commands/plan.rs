//! `ds4-coord plan`: which machine should hold which experts, and how fast the cluster will be.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use ds4_cli::{parse, print};
use ds4_common::model::synthetic::{Formats, presets};
use ds4_common::model::{Fingerprint, WeightBudget};
use ds4_common::quantity::Bytes;

use super::assembly::OpenModel;
use super::calibrate::{MeasureArgs, measure};
use super::model_args::ModelFiles;
use crate::plan::{
    Assumptions, ClusterFile, CoordinatorMachine, Demand, ExtraReplicas, NodeMachine,
    PlacementPlan, plan,
};

mod report;

const EXAMPLES: &str = "\
Examples:
  # Before anything is bought: the published Flash model on two machines
  ds4-coord plan --flash --node name=a,memory=64G --node name=b,memory=128G,link=1G

  # Measure running nodes, plan for them, and write the plan for `slice` and `share`
  ds4-coord plan -m V4-Flash-Q4.gguf --calibrate 10.0.0.11:50051,10.0.0.12:50051 --out plan.toml

Sizes and rates take the units k, M, G, T (powers of 1000) and Ki, Mi, Gi, Ti (powers of 1024).";

/// Model, machines and replicas.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// File that lists the machines, as [coordinator] and [[node]]
    #[arg(long, value_name = "FILE.toml")]
    pub cluster: Option<PathBuf>,

    /// Running nodes to measure first, comma-separated; the plan is for their machines and this
    /// one
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = super::calibrate::address,
        conflicts_with = "cluster"
    )]
    pub calibrate: Vec<String>,

    /// A node in addition to those of the file: name=a,memory=64G, and if known address=,
    /// bandwidth=, link=, rtt= and compute=; repeatable
    #[arg(long = "node", value_name = "PROPERTIES")]
    pub nodes: Vec<NodeMachine>,

    /// The coordinator's machine, instead of the file's: memory=, bandwidth=, link=, compute= or
    /// disk=, comma-separated
    #[arg(long, value_name = "PROPERTIES")]
    pub coordinator: Option<CoordinatorMachine>,

    /// Extra replicas of every tile; the plan fails if they do not fit [default: one, as far as
    /// memory allows]
    #[arg(long, value_name = "N", value_parser = parse::up_to(31))]
    pub replicas: Option<usize>,

    /// Memory of every node to keep free of weights [default: 1.5 GB and 3%]
    #[arg(long, value_name = "SIZE")]
    pub reserve: Option<Bytes>,

    /// Write the plan to this file as well
    #[arg(long, value_name = "PLAN.toml")]
    pub out: Option<PathBuf>,

    /// Which model.
    #[command(flatten)]
    pub files: ModelFiles,

    /// Plan for DeepSeek V4 Flash with Q4_K experts, without a file of it; with a number, for that
    /// many layers
    #[arg(
        long,
        value_name = "LAYERS",
        num_args = 0..=1,
        default_missing_value = "43",
        conflicts_with = "model",
        help_heading = "Model",
        value_parser = parse::count(1024)
    )]
    pub flash: Option<usize>,

    /// How nodes are measured.
    #[command(flatten)]
    pub measure: MeasureArgs,
}

/// Prints the plan, and writes it if a file was named.
///
/// # Errors
/// The model or the list of machines cannot be used, the model does not fit, or the plan cannot be
/// written.
pub async fn run(args: &PlanArgs) -> Result<()> {
    let plan = make(args).await?;
    let model = &args.files.named.model[..];
    let model = (args.flash.is_none() && !model.is_empty()).then_some(model);
    let printed = print(report::text(&plan, model, args.out.as_deref()));
    // Written even if the report's reader has left early.
    if let Some(out) = &args.out {
        plan.file().write(out)?;
    }
    Ok(printed?)
}

async fn make(args: &PlanArgs) -> Result<PlacementPlan> {
    let mut listed = match &args.cluster {
        Some(path) => ClusterFile::read(path)?,
        None if args.calibrate.is_empty() => ClusterFile::default(),
        None => {
            let measured = measure(&args.calibrate, &args.measure).await?;
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
        "no nodes to plan for: list them with --cluster, --calibrate or --node"
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
