//! `ds4-coord chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use ds4_cli::{print, print_line};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::certificates;
use super::service::{Service, ServiceArgs};
use crate::prompt::{Conversation, FinishReason, Message, OutputEvent, Thinking, render};
use crate::sampling::SamplingParams;
use crate::scheduler::{
    AnswerFormat, GenerateError, GenerateRequest, Generation, GenerationEvent, GenerationSummary,
    random_seed,
};

const EXAMPLES: &str = "\
Examples:
  ds4-coord chat -m V4-Flash-Q4.gguf --nodes 10.0.0.11:50051,10.0.0.12:50051
  echo 'What is a monad?' | ds4-coord chat -m V4-Flash-Q4.gguf --no-think --seed 1";

/// How to converse.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ChatArgs {
    /// System prompt of the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Answer without reasoning first
    #[arg(long)]
    pub no_think: bool,

    /// Longest answer
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    pub max_tokens: usize,

    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, default_value_t = 1.0, value_name = "NUMBER", value_parser = temperature)]
    pub temperature: f32,

    /// Seed of the sampler; equal seeds give equal answers [default: random]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// What runs.
    #[command(flatten)]
    pub service: ServiceArgs,
}

const HELP: &str = "/think on|off   turn reasoning before answers on or off
/reset          start a new conversation
/quit           quit (or press ctrl-d)
ctrl-c stops an answer, or quits if there is none";

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Converses until the input ends.
///
/// # Errors
/// The model or a node cannot be used, the engine failed, or standard output cannot be written.
pub async fn run(args: ChatArgs) -> Result<()> {
    let security = args.service.model.security()?;
    let _certificates = certificates::watch(&security);
    let service = Service::start(&args.service, security).await?;
    let result = converse(&service, &args).await;
    service.stop(Duration::ZERO).await;
    result
}

async fn converse(service: &Service, args: &ChatArgs) -> Result<()> {
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        print_line!("{}: /help lists the commands", service.model.name)?;
    }
    let mut chat = Chat::new(service, args);
    let (want_line, mut lines) = line_reader(interactive)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot receive signals")?;
    loop {
        // The reader asks for input only when the last answer is out.
        if want_line.send(()).await.is_err() {
            break;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = interrupt.recv() => None,
        };
        let Some(line) = line else {
            if interactive {
                print("\n")?;
            }
            break;
        };
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => break,
            "/help" => print_line!("{HELP}")?,
            "/reset" => chat.reset(),
            "/think on" => chat.thinking = Thinking::On(None),
            "/think off" => chat.thinking = Thinking::Off,
            command if is_command(command) => print_line!("unknown command: {command}\n{HELP}")?,
            text => match chat.turn(text, &mut interrupt).await {
                // In a terminal the user can try again; a script needs the exit code.
                Err(error) if interactive && !is_final(&error) => note(&format!("{error:#}")),
                result => result?,
            },
        }
    }
    Ok(())
}

/// Whether a line looks like a command rather than a path or a comment in pasted text.
fn is_command(line: &str) -> bool {
    let word = line
        .split_whitespace()
        .next()
        .and_then(|word| word.strip_prefix('/'));
    word.is_some_and(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase()))
}

/// Whether the scheduler will not answer again.
fn is_final(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(GenerateError::Stopped | GenerateError::ShuttingDown)
    )
}

/// A thread that reads one line for each request: terminals have no asynchronous input.
fn line_reader(prompt: bool) -> Result<(mpsc::Sender<()>, mpsc::Receiver<String>)> {
    let (want, mut wanted) = mpsc::channel::<()>(1);
    let (send, lines) = mpsc::channel(1);
    let read = move || {
        let mut input = std::io::stdin().lock().lines();
        while wanted.blocking_recv().is_some() {
            if prompt {
                // A terminal that is gone also ends the input.
                let _ = print("> ");
            }
            let Some(Ok(line)) = input.next() else { break };
            if send.blocking_send(line).is_err() {
                break;
            }
        }
    };
    let thread = std::thread::Builder::new().name("ds4-input".to_owned());
    thread
        .spawn(read)
        .context("cannot start the thread that reads lines")?;
    Ok((want, lines))
}

struct Chat<'a> {
    service: &'a Service,
    args: &'a ChatArgs,
    messages: Vec<Message>,
    thinking: Thinking,
}

impl<'a> Chat<'a> {
    fn new(service: &'a Service, args: &'a ChatArgs) -> Self {
        let thinking = if args.no_think {
            Thinking::Off
        } else {
            Thinking::On(None)
        };
        let mut chat = Chat {
            service,
            args,
            messages: Vec::new(),
            thinking,
        };
        chat.reset();
        chat
    }

    fn reset(&mut self) {
        self.messages.clear();
        self.messages
            .extend(self.args.system.clone().map(Message::system));
    }

    /// Sends a message and shows the answer. A message without an answer is not remembered.
    async fn turn(&mut self, text: &str, interrupt: &mut Signal) -> Result<()> {
        self.messages.push(Message::user(text));
        match self.answer(interrupt).await {
            Ok(answer) if !answer.is_empty() => {
                self.messages.push(Message::Assistant {
                    content: answer.content,
                    reasoning: Some(answer.reasoning).filter(|text| !text.is_empty()),
                    tool_calls: Vec::new(),
                    prefix: false,
                });
                Ok(())
            }
            result => {
                self.messages.pop();
                result.map(|_| ())
            }
        }
    }

    async fn answer(&self, interrupt: &mut Signal) -> Result<ChatAnswer> {
        let conversation = Conversation {
            messages: self.messages.clone(),
            thinking: self.thinking,
            ..Conversation::default()
        };
        let prompt = render(&conversation, self.service.dialect)?;
        let tokenizer = &self.service.vocabulary.tokenizer;
        let tokens = tokenizer.encode_segments(&prompt.segments);
        let format = AnswerFormat::Chat {
            start: prompt.start,
            tools_offered: false,
        };
        let generation = self.service.scheduler.submit(GenerateRequest {
            max_tokens: Some(self.args.max_tokens),
            sampling: SamplingParams {
                temperature: self.args.temperature,
                seed: self.args.seed.unwrap_or_else(random_seed),
                ..SamplingParams::default()
            },
            ..GenerateRequest::new(tokens, format)
        })?;
        show(generation, interrupt).await
    }
}

/// What the model has said so far.
#[derive(Default)]
struct ChatAnswer {
    reasoning: String,
    content: String,
}

/// Shows prefill progress, then the answer as it comes, then its speed.
async fn show(mut generation: Generation, interrupt: &mut Signal) -> Result<ChatAnswer> {
    let bar = prefill_bar(generation.prompt_tokens() as u64);
    let mut progress = generation.progress();
    let mut answer = ChatAnswer::default();
    loop {
        tokio::select! {
            event = generation.next_event() => match event {
                GenerationEvent::Token(token) => {
                    bar.finish_and_clear();
                    answer.print(token.deltas)?;
                }
                GenerationEvent::Finished { deltas, summary } => {
                    bar.finish_and_clear();
                    answer.print(deltas)?;
                    print_speed(&summary)?;
                    return Ok(answer);
                }
                GenerationEvent::Failed(error) => {
                    bar.finish_and_clear();
                    return Err(error.into());
                }
            },
            _ = interrupt.recv() => {
                bar.finish_and_clear();
                print("\n")?;
                note("[stopped]");
                return Ok(answer);
            }
            Ok(()) = progress.changed() => bar.set_position(progress.borrow().done as u64),
        }
    }
}

fn prefill_bar(tokens: u64) -> ProgressBar {
    let bar = ProgressBar::new(tokens);
    let style =
        ProgressStyle::with_template("reading {wide_bar} {pos}/{len} tokens, {rate}, {eta} left");
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A template has no way to report the error.
        let _ = write!(out, "{:.0}/s", state.per_sec());
    };
    bar.set_style(
        style
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .with_key("rate", rate),
    );
    // Shown at once, even before the first part has been read.
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

impl ChatAnswer {
    fn is_empty(&self) -> bool {
        self.reasoning.is_empty() && self.content.is_empty()
    }

    fn print(&mut self, deltas: Vec<OutputEvent>) -> Result<()> {
        let terminal = std::io::stdout().is_terminal();
        let mut shown = String::new();
        for delta in deltas {
            match delta {
                OutputEvent::Reasoning(text) => {
                    if terminal {
                        shown += &format!("{DIM}{}{PLAIN}", harmless(&text));
                    } else {
                        shown += &text;
                    }
                    self.reasoning.push_str(&text);
                }
                OutputEvent::Content(text) => {
                    if self.content.is_empty() && !self.reasoning.is_empty() {
                        shown.push('\n');
                    }
                    if terminal {
                        shown += &harmless(&text);
                    } else {
                        shown += &text;
                    }
                    self.content.push_str(&text);
                }
                OutputEvent::CallStart { .. }
                | OutputEvent::CallArguments { .. }
                | OutputEvent::CallEnd { .. } => {}
            }
        }
        Ok(print(shown)?)
    }
}

/// The text without the control characters by which a terminal is commanded.
fn harmless(text: &str) -> String {
    let visible = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(visible).collect()
}

/// Ends the answer's line, and reports its speed on standard error.
fn print_speed(summary: &GenerationSummary) -> Result<()> {
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let (usage, timings) = (summary.usage, summary.timings);
    print("\n")?;
    note(&format!(
        "[{} tokens read at {:.1}/s, {} written at {:.1}/s{}]",
        usage.prompt_tokens,
        rate(usage.prompt_tokens, timings.prefill),
        usage.completion_tokens,
        rate(usage.completion_tokens.saturating_sub(1), timings.decode),
        if summary.reason == FinishReason::Length {
            ", cut at the token limit"
        } else {
            ""
        }
    ));
    Ok(())
}

/// A line on standard error, which may be closed.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn temperature(text: &str) -> Result<f32> {
    let temperature = text.parse().context("expected a number")?;
    let params = SamplingParams {
        temperature,
        ..SamplingParams::default()
    };
    params.validate()?;
    Ok(temperature)
}

#[cfg(test)]
mod tests {
    use super::{harmless, is_command};

    #[test]
    fn pasted_code_and_paths_are_no_commands() {
        assert!(is_command("/help") && is_command("/think maybe"));
        for text in ["/", "//! docs", "/usr/bin is full", "/* a */", "help", ""] {
            assert!(!is_command(text), "{text}");
        }
    }

    #[test]
    fn a_model_cannot_command_the_terminal() {
        assert_eq!(
            harmless("a\tb\nc\u{1b}[2Jd\r\u{8}\u{9b}31m é🦀"),
            "a\tb\nc\u{fffd}[2Jd\u{fffd}\u{fffd}\u{fffd}31m é🦀"
        );
    }
}
