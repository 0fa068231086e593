//! `ds4-coord chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use super::service::{Service, ServiceArgs};
use crate::prompt::{Conversation, Message, OutputEvent, Thinking, render};
use crate::sampling::SamplingParams;
use crate::scheduler::{
    Event, Finish, GenerateError, GenerateRequest, Generation, Reading, random_seed,
};

/// How to talk.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    #[command(flatten)]
    pub service: ServiceArgs,

    /// Instructions that precede the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Answer without reasoning first
    #[arg(long)]
    pub no_think: bool,

    /// Longest answer in tokens
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    pub max_tokens: usize,

    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 1.0, value_parser = temperature)]
    pub temperature: f32,

    /// Equal seeds give equal answers [default: another one each time]
    #[arg(long)]
    pub seed: Option<u64>,
}

const HELP: &str = "/think on|off   reason before answering
/reset          forget the conversation
/quit           leave (so does ctrl-d)
ctrl-c stops an answer; where there is none, it leaves";

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Talks until the input ends.
///
/// # Errors
/// The model or a node can't be used, or the engine failed.
pub async fn run(args: ChatArgs) -> Result<()> {
    let service = Service::start(&args.service).await?;
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        println!("{}: /help lists the commands", service.model.name);
    }
    let mut chat = Chat::new(&service, &args);
    let (want_line, mut lines) = line_reader(interactive);
    loop {
        // The reader asks for input only when the last answer is out.
        if want_line.send(()).await.is_err() {
            break;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { break };
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => break,
            "/help" => println!("{HELP}"),
            "/reset" => chat.reset(),
            "/think on" => chat.thinking = Thinking::On(None),
            "/think off" => chat.thinking = Thinking::Off,
            command if command.starts_with('/') => println!("unknown command\n{HELP}"),
            text => chat.turn(text).await?,
        }
    }
    service.scheduler.shut_down(Duration::ZERO).await;
    for node in service.embedded {
        node.stop().await;
    }
    Ok(())
}

/// A thread that reads one line for each request: terminals have no asynchronous input.
fn line_reader(prompt: bool) -> (mpsc::Sender<()>, mpsc::Receiver<String>) {
    let (want, mut wanted) = mpsc::channel::<()>(1);
    let (send, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock().lines();
        while wanted.blocking_recv().is_some() {
            if prompt {
                print!("> ");
                let _ = std::io::stdout().flush();
            }
            let Some(Ok(line)) = input.next() else { break };
            if send.blocking_send(line).is_err() {
                break;
            }
        }
    });
    (want, lines)
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

    async fn turn(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::user(text));
        let conversation = Conversation {
            messages: self.messages.clone(),
            thinking: self.thinking,
            ..Conversation::default()
        };
        let prompt = render(&conversation, self.service.dialect)?;
        let generation = self.service.scheduler.submit(GenerateRequest {
            prompt: self
                .service
                .vocabulary
                .tokenizer
                .encode_segments(&prompt.segments),
            max_tokens: Some(self.args.max_tokens),
            sampling: SamplingParams {
                temperature: self.args.temperature,
                seed: self.args.seed.unwrap_or_else(random_seed),
                ..SamplingParams::default()
            },
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            reading: Reading::Chat {
                start: prompt.start,
                tools_offered: false,
            },
        });
        let generation = match generation {
            Ok(generation) => generation,
            Err(error) => {
                // A conversation that has outgrown the context: the user can /reset.
                self.messages.pop();
                println!("{error}");
                return Ok(());
            }
        };
        match show(generation).await? {
            Shown::Answer(answer) => self.messages.push(Message::Assistant {
                content: answer.content,
                reasoning: Some(answer.reasoning).filter(|text| !text.is_empty()),
                tool_calls: Vec::new(),
                prefix: false,
            }),
            Shown::Failed(error) => {
                // An expert node may come back: the same question can be asked again.
                self.messages.pop();
                println!("{error}");
            }
        }
        Ok(())
    }
}

/// What became of a turn.
enum Shown {
    /// Whole, or as far as it came before it was stopped.
    Answer(Answer),
    Failed(GenerateError),
}

#[derive(Default)]
struct Answer {
    reasoning: String,
    content: String,
}

/// Shows prefill progress, then the answer as it comes, then its speed. Ctrl-c ends it.
async fn show(mut generation: Generation) -> Result<Shown> {
    let bar = prefill_bar(generation.prompt_tokens() as u64);
    let mut progress = generation.progress();
    let mut answer = Answer::default();
    loop {
        tokio::select! {
            event = generation.next_event() => {
                bar.finish_and_clear();
                match event {
                    Event::Token(drawn) => answer.print(drawn.deltas)?,
                    Event::Finished { deltas, finish } => {
                        answer.print(deltas)?;
                        print_speed(&finish);
                        return Ok(Shown::Answer(answer));
                    }
                    Event::Failed(error @ GenerateError::Stopped) => bail!(error),
                    Event::Failed(error) => return Ok(Shown::Failed(error)),
                }
            }
            Ok(()) = progress.changed() => bar.set_position(progress.borrow().done as u64),
            _ = tokio::signal::ctrl_c() => {
                bar.finish_and_clear();
                println!("\n[stopped]");
                return Ok(Shown::Answer(answer));
            }
        }
    }
}

fn prefill_bar(tokens: u64) -> ProgressBar {
    let bar = ProgressBar::new(tokens);
    let style =
        ProgressStyle::with_template("reading {wide_bar} {pos}/{len} tokens {per_sec} {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

impl Answer {
    fn print(&mut self, deltas: Vec<OutputEvent>) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let colour = out.is_terminal();
        for delta in deltas {
            match delta {
                OutputEvent::Reasoning(text) => {
                    if colour {
                        write!(out, "{DIM}{text}{PLAIN}")?;
                    } else {
                        write!(out, "{text}")?;
                    }
                    self.reasoning.push_str(&text);
                }
                OutputEvent::Content(text) => {
                    if self.content.is_empty() && !self.reasoning.is_empty() {
                        writeln!(out)?;
                    }
                    write!(out, "{text}")?;
                    self.content.push_str(&text);
                }
                OutputEvent::CallStart { .. }
                | OutputEvent::CallArguments { .. }
                | OutputEvent::CallEnd { .. } => {}
            }
        }
        out.flush().context("the terminal is gone")
    }
}

fn print_speed(finish: &Finish) {
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let (usage, timings) = (finish.usage, finish.timings);
    println!();
    eprintln!(
        "[{} tokens read at {:.1}/s, {} written at {:.1}/s]",
        usage.prompt_tokens,
        rate(usage.prompt_tokens, timings.prefill),
        usage.completion_tokens,
        rate(usage.completion_tokens.saturating_sub(1), timings.decode)
    );
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
