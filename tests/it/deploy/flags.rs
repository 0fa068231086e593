//! Checks the containers' flags and variables with the programs' own definitions.

use clap::{ArgAction, ArgMatches, Command, CommandFactory};

use super::manifests::{Base, Workload};
use super::readme;

/// The command lines of the workspace's programs.
pub(super) fn programs() -> [Command; 2] {
    let mut programs = [
        ds4_coordinator::commands::cli::Cli::command(),
        ds4_expert_node::cli::Cli::command(),
    ];
    programs.iter_mut().for_each(Command::build);
    programs
}

fn program(name: &str) -> Option<Command> {
    programs()
        .into_iter()
        .find(|program| program.get_name() == name)
}

/// The flag that an environment variable stands for.
fn flag(program: &Command, (name, value): &(String, String)) -> Result<String, String> {
    let serve = program.find_subcommand("serve").ok_or("no serve")?;
    let known = serve.get_arguments();
    let mut known = known.filter(|arg| arg.get_env().is_some_and(|env| env == name.as_str()));
    let arg = known.next().ok_or(format!("no variable {name}"))?;
    let long = arg.get_long().ok_or(format!("{name} has no long flag"))?;
    match arg.get_action() {
        ArgAction::SetTrue => Err(format!("{name} is a switch: use the flag")),
        _ => Ok(format!("--{long}={value}")),
    }
}

fn parse(
    name: &str,
    args: &[String],
    variables: &[(String, String)],
) -> Result<ArgMatches, String> {
    let program = program(name).ok_or(format!("no program {name}"))?;
    let mut all = vec![name.to_owned()];
    all.extend(args.iter().cloned());
    for variable in variables {
        all.push(flag(&program, variable)?);
    }
    let matches = program.try_get_matches_from(all);
    let matches = matches.map_err(|error| error.to_string())?;
    let (command, matches) = matches.subcommand().ok_or("no command")?;
    match command {
        "serve" => Ok(matches.clone()),
        other => Err(format!("{other} instead of serve")),
    }
}

/// The parsed command line of a workload's pods.
pub(super) fn serve(workload: &Workload) -> ArgMatches {
    let pod = format!("{}-0", workload.name());
    parse(
        workload.program(),
        &workload.args(),
        &workload.variables(&pod),
    )
    .unwrap_or_else(|error| panic!("{}: {error}", workload.name()))
}

#[test]
fn every_flag_and_variable_is_one_of_the_programs() {
    for workload in Base::load().workloads() {
        serve(&workload);
    }
}

#[test]
fn a_misspelt_flag_or_variable_would_be_found() {
    let experts = Base::load().experts();
    let parse = |args: &[String], variables: &[(&str, &str)]| {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let variables: Vec<_> = variables.iter().map(owned).collect();
        parse(experts.program(), args, &variables)
    };
    let with = |extra: &str| [experts.args(), vec![extra.to_owned()]].concat();
    assert!(parse(&experts.args(), &[("DS4_NAME", "a-0")]).is_ok());
    assert!(parse(&experts.args(), &[("DS4_NAMES", "a-0")]).is_err());
    assert!(parse(&experts.args(), &[("DS4_THREADS", "many")]).is_err());
    assert!(parse(&with("--listens=0.0.0.0:1"), &[]).is_err());
    assert!(parse(&with("--drain-timeout=never"), &[]).is_err());
}

#[test]
fn the_commands_of_the_instructions_are_valid() {
    let mut seen = 0;
    for words in readme::commands() {
        let Some(program) = program(&words[0]) else {
            continue;
        };
        seen += 1;
        if let Err(error) = program.try_get_matches_from(&words) {
            panic!("{words:?}: {error}");
        }
    }
    assert!(seen > 0, "no command");
}
