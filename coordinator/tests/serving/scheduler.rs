//! The scheduler without HTTP.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ds4_coordinator::engine::ExpertError;
use ds4_coordinator::prompt::OutputEvent;
use ds4_coordinator::sampling::SamplingParams;
use ds4_coordinator::scheduler::{
    AdmissionError, AnswerFormat, GenerateError, GenerateRequest, Generation, GenerationEvent,
    Scheduler, SchedulerLimits,
};

use crate::script::{
    CONTEXT, Controls, EXPERTS_FAIL, SEQUENCE_BYTES, Scripted, TOKEN_BYTES, vocabulary,
};

fn start(limits: SchedulerLimits) -> (Scheduler, Arc<Controls>) {
    let (vocabulary, controls) = (vocabulary(), Arc::new(Controls::default()));
    let model = Scripted::new(Arc::clone(&vocabulary), Arc::clone(&controls));
    (
        Scheduler::start(model, vocabulary, limits).unwrap(),
        controls,
    )
}

fn request(text: &str) -> GenerateRequest {
    let tokens = text.bytes().map(u32::from).collect();
    GenerateRequest::new(tokens, AnswerFormat::Text)
}

/// The whole text, or why there is none.
async fn text(mut generation: Generation) -> Result<String, GenerateError> {
    let mut text = String::new();
    let mut push = |deltas: Vec<OutputEvent>| {
        for delta in deltas {
            match delta {
                OutputEvent::Content(more) => text.push_str(&more),
                other => panic!("{other:?}"),
            }
        }
    };
    loop {
        match generation.next_event().await {
            GenerationEvent::Token(token) => push(token.deltas),
            GenerationEvent::Finished { deltas, .. } => {
                push(deltas);
                return Ok(text);
            }
            GenerationEvent::Failed(error) => return Err(error),
        }
    }
}

#[tokio::test]
async fn prompts_are_computed_in_chunks_and_progress_is_reported() {
    let (scheduler, controls) = start(SchedulerLimits {
        chunk: 10,
        ..SchedulerLimits::default()
    });
    let prompt = format!("{}say:hi", "x".repeat(31));
    let generation = scheduler.submit(request(&prompt)).unwrap();
    let progress = generation.progress();
    assert_eq!(text(generation).await.unwrap(), "hi");
    let last = *progress.borrow();
    assert_eq!((last.done, last.total, last.started), (37, 37, true));
    let steps = controls.steps.lock().unwrap();
    let prefill = [(10, false), (10, false), (10, false), (7, true)];
    let decode = [(1, true), (1, true)];
    let expected: Vec<Vec<_>> = prefill
        .into_iter()
        .chain(decode)
        .map(|chunk| vec![chunk])
        .collect();
    assert_eq!(*steps, expected);
}

#[tokio::test]
async fn a_long_prompt_does_not_hold_up_an_answer() {
    let (scheduler, controls) = start(SchedulerLimits {
        chunk: 40,
        ..SchedulerLimits::default()
    });
    controls.hold();
    let short = scheduler.submit(request("say:quick answer")).unwrap();
    controls.wait_busy().await;
    let long = scheduler
        .submit(request(&format!("{}say:slow", "x".repeat(1000))))
        .unwrap();
    controls.release();
    assert_eq!(text(short).await.unwrap(), "quick answer");
    assert_eq!(text(long).await.unwrap(), "slow");
    let steps = controls.steps.lock().unwrap();
    // Beside an answer the prompt gets a quarter of the chunk, alone all of it.
    assert!(steps.contains(&vec![(1, true), (10, false)]), "{steps:?}");
    assert!(steps.contains(&vec![(40, false)]), "{steps:?}");
    let beside = steps.iter().filter(|step| step.len() == 2).count();
    assert_eq!(beside, "quick answer".len());
}

#[tokio::test]
async fn impossible_requests_are_refused_by_name() {
    let (scheduler, _) = start(SchedulerLimits::default());
    let refused = |request| scheduler.submit(request).err();
    assert_eq!(refused(request("")), Some(AdmissionError::EmptyPrompt));
    let (prompt, context) = (CONTEXT, CONTEXT);
    let long = request(&"x".repeat(CONTEXT));
    assert_eq!(
        refused(long),
        Some(AdmissionError::PromptTooLong {
            prompt,
            exact: true,
            context
        })
    );
    let strange = GenerateRequest {
        prompt: vec![1, 264],
        ..request("")
    };
    let unknown = AdmissionError::UnknownToken {
        token: 264,
        vocab: 264,
    };
    assert_eq!(refused(strange), Some(unknown));
    let sampling = SamplingParams {
        temperature: f32::NAN,
        ..SamplingParams::default()
    };
    let hot = refused(GenerateRequest {
        sampling,
        ..request("x")
    });
    assert!(matches!(hot, Some(AdmissionError::Parameter(_))), "{hot:?}");
}

#[tokio::test]
async fn a_failed_step_fails_its_members_alone() {
    let limits = SchedulerLimits {
        max_sequences: 2,
        ..SchedulerLimits::default()
    };
    let (scheduler, controls) = start(limits);
    controls.hold();
    let first = scheduler.submit(request("say:first")).unwrap();
    controls.wait_busy().await;
    let failing = scheduler.submit(request(EXPERTS_FAIL)).unwrap();
    let waiting = scheduler.submit(request("say:waiting")).unwrap();
    controls.release();
    for member in [first, failing] {
        match text(member).await {
            Err(GenerateError::Experts(ExpertError::Unreachable { node, layer: 3, .. })) => {
                assert_eq!(node, "10.0.0.7:50052");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(text(waiting).await.unwrap(), "waiting");
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_no_other_down() {
    let (scheduler, _) = start(SchedulerLimits::default());
    let lazy = scheduler
        .submit(request(&format!("say:{}", "z".repeat(900))))
        .unwrap();
    for i in 0..3 {
        let answer = format!("busy {i}");
        let generation = scheduler.submit(request(&format!("say:{answer}"))).unwrap();
        assert_eq!(text(generation).await.unwrap(), answer);
    }
    // Everything is there when it finally reads.
    assert_eq!(text(lazy).await.unwrap().len(), 900);
}

#[tokio::test]
async fn requests_run_together_only_while_their_caches_fit() {
    // Room for two sequences of 60 tokens.
    let kv_memory = 2 * (SEQUENCE_BYTES + 60 * TOKEN_BYTES);
    let (scheduler, controls) = start(SchedulerLimits {
        kv_memory,
        ..SchedulerLimits::default()
    });
    let limited = |text: &str, max_tokens| GenerateRequest {
        max_tokens: Some(max_tokens),
        ..request(text)
    };
    controls.hold();
    let begun = limited("say:0", 55);
    let begun = scheduler.submit(begun).unwrap();
    controls.wait_busy().await;
    let others: Vec<Generation> = (1..6)
        .map(|i| limited(&format!("say:{i}{}", "x".repeat(20)), 35))
        .map(|request| scheduler.submit(request).unwrap())
        .collect();
    controls.release();
    assert_eq!(text(begun).await.unwrap(), "0");
    for (i, other) in (1..).zip(others) {
        assert_eq!(text(other).await.unwrap(), format!("{i}{}", "x".repeat(20)));
    }
    let steps = controls.steps.lock().unwrap();
    assert_eq!(steps.iter().map(Vec::len).max(), Some(2), "{steps:?}");
    drop(steps);

    let longest = ((kv_memory - SEQUENCE_BYTES) / TOKEN_BYTES) as usize;
    assert_eq!(scheduler.context(), longest);
    let too_long = scheduler.submit(limited("say:x", longest)).err();
    let expected = AdmissionError::KvMemory {
        prompt: 5,
        answer: longest,
        bytes: kv_memory + 5 * TOKEN_BYTES,
        budget: kv_memory,
        longest,
    };
    assert_eq!(too_long, Some(expected));
    let prompt = request(&"x".repeat(longest));
    assert!(matches!(
        scheduler.submit(prompt).err(),
        Some(AdmissionError::KvMemory { answer: 1, .. })
    ));
}

#[tokio::test]
async fn memory_for_no_request_at_all_is_refused() {
    let model = Scripted::new(vocabulary(), Arc::default());
    let limits = SchedulerLimits {
        kv_memory: SEQUENCE_BYTES + TOKEN_BYTES,
        ..SchedulerLimits::default()
    };
    let error = Scheduler::start(model, vocabulary(), limits).unwrap_err();
    assert!(error.to_string().contains("110 bytes"), "{error}");
    assert!(error.to_string().contains("at least 120"), "{error}");
}

#[tokio::test]
async fn a_request_that_waits_too_long_fails() {
    let limits = SchedulerLimits {
        max_sequences: 1,
        max_wait: Duration::from_millis(50),
        ..SchedulerLimits::default()
    };
    let (scheduler, controls) = start(limits);
    controls.layer_ms.store(5, Ordering::Relaxed);
    let endless = GenerateRequest {
        ignore_eos: true,
        ..request("say:x")
    };
    let running = scheduler.submit(endless).unwrap();
    controls.wait_busy().await;
    let waiting = scheduler.submit(request("say:y")).unwrap();
    let error = text(waiting).await.unwrap_err();
    assert!(
        matches!(error, GenerateError::QueueTimeout { limit_s: 0 }),
        "{error}"
    );
    drop(running);
}

#[tokio::test]
async fn dropping_a_generation_makes_room_for_another() {
    let limits = SchedulerLimits {
        max_sequences: 1,
        ..SchedulerLimits::default()
    };
    let (scheduler, controls) = start(limits);
    let endless = GenerateRequest {
        ignore_eos: true,
        ..request("say:x")
    };
    let dropped = scheduler.submit(endless).unwrap();
    controls.wait_busy().await;
    let next = scheduler.submit(request("say:next")).unwrap();
    drop(dropped);
    assert_eq!(text(next).await.unwrap(), "next");
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_usage_is_counted() {
    let (scheduler, _) = start(SchedulerLimits::default());
    let run = async |seed| {
        let sampling = SamplingParams {
            seed,
            temperature: 2.0,
            ..SamplingParams::default()
        };
        let mut generation = scheduler
            .submit(GenerateRequest {
                sampling,
                ..request("say:abc")
            })
            .unwrap();
        let mut tokens = Vec::new();
        loop {
            match generation.next_event().await {
                GenerationEvent::Token(token) => tokens.push(token.token),
                GenerationEvent::Finished { summary, .. } => {
                    assert_eq!(summary.usage.completion_tokens, tokens.len());
                    return tokens;
                }
                GenerationEvent::Failed(error) => panic!("{error}"),
            }
        }
    };
    assert_eq!(run(7).await, run(7).await);
}
