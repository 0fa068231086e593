use super::*;
use crate::scheduler::request::{AnswerFormat, RequestOrigin};

const ONE: ClientKey = client(1, 0);

const fn client(address: u64, key: u64) -> ClientKey {
    ClientKey { address, key }
}

fn queued_by(client: ClientKey) -> impl Fn(u64) -> QueuedRequest {
    move |id| {
        let mut queued = queued(id);
        let origin = RequestOrigin {
            client,
            ..RequestOrigin::default()
        };
        queued.request.origin = origin;
        queued
    }
}

fn queued(id: u64) -> QueuedRequest {
    let (events, _) = mpsc::channel(1);
    let (progress, _) = watch::channel(PromptProgress::default());
    let request = GenerateRequest::new(vec![1, 2], AnswerFormat::Text);
    QueuedRequest {
        id,
        sampler: Sampler::new(request.sampling).unwrap(),
        request,
        max_tokens: 1,
        kv_bytes: 10,
        events,
        progress,
        cancelled: Arc::default(),
        submitted: Instant::now(),
    }
}

#[test]
fn requests_that_can_run_at_once_do_not_count_as_waiting() {
    let queue = Queue::new(1, 2);
    for _ in 0..3 {
        queue.push(ONE, queued).unwrap();
    }
    assert!(matches!(
        queue.push(ONE, queued),
        Err(AdmissionError::QueueFull {
            waiting: 1,
            own: 3,
            ..
        })
    ));
    assert_eq!(queue.take(2, 1000, false).len(), 2);
    assert!(matches!(
        queue.push(ONE, queued),
        Err(AdmissionError::QueueFull { waiting: 1, .. })
    ));
    queue.finished(0, Duration::from_secs(1));
    queue.push(ONE, queued).unwrap();
}

#[test]
fn a_caller_that_left_makes_room_at_once() {
    let queue = Queue::new(0, 1);
    let mut flag = None;
    queue
        .push(ONE, |id| {
            let queued = queued(id);
            flag = Some(Arc::clone(&queued.cancelled));
            queued
        })
        .unwrap();
    assert!(queue.push(ONE, queued).is_err());
    flag.unwrap().store(true, Ordering::Relaxed);
    queue.push(ONE, queued).unwrap();
    assert_eq!(queue.counts(), (1, 0));
}

#[test]
fn requests_leave_in_order_and_without_those_whose_callers_left() {
    let queue = Queue::new(8, 2);
    let mut flags = Vec::new();
    for _ in 0..5 {
        queue
            .push(ONE, |id| {
                let queued = queued(id);
                flags.push(Arc::clone(&queued.cancelled));
                queued
            })
            .unwrap();
    }
    flags[0].store(true, Ordering::Relaxed);
    flags[3].store(true, Ordering::Relaxed);
    let ids =
        |requests: Vec<QueuedRequest>| requests.iter().map(|queued| queued.id).collect::<Vec<_>>();
    // None can run, but requests whose callers left are dropped all the same.
    assert!(queue.take(0, 1000, false).is_empty());
    assert_eq!(queue.counts(), (3, 0));
    assert_eq!(ids(queue.take(2, 1000, true)), [1, 2]);
    assert_eq!(ids(queue.take(2, 1000, true)), [4]);
    assert_eq!(queue.counts(), (0, 3));
}

#[test]
fn a_newcomer_gets_into_a_full_queue_and_the_next_place() {
    let queue = Queue::new(4, 1);
    let (many, few) = (client(1, 1), client(1, 2));
    let mut events = Vec::new();
    for _ in 0..5 {
        queue
            .push(many, |id| {
                let (sender, receiver) = mpsc::channel(1);
                events.push(receiver);
                QueuedRequest {
                    events: sender,
                    ..queued_by(many)(id)
                }
            })
            .unwrap();
    }
    assert_eq!(queue.take(1, 1000, false).len(), 1);
    assert!(queue.check_room(many).is_err());
    assert!(queue.check_room(few).is_ok());
    queue.push(few, queued_by(few)).unwrap();
    assert_eq!(queue.counts(), (4, 1));
    let event = events[4].try_recv();
    assert!(
        matches!(
            event,
            Ok(GenerationEvent::Failed(GenerateError::Displaced {
                retry_after_s: 1..
            }))
        ),
        "{event:?}"
    );
    queue.finished(0, Duration::from_secs(1));
    assert_eq!(queue.take(1, 1000, false)[0].request.origin.client, few);
    // Both have one waiting and one running at most: nobody gives way any more.
    queue.push(few, queued_by(few)).unwrap();
    assert!(queue.push(many, queued_by(many)).is_err());
}

#[test]
fn keys_made_up_behind_one_address_leave_room_for_another() {
    let queue = Queue::new(4, 1);
    for key in 0..5 {
        let made_up = client(1, key);
        queue.push(made_up, queued_by(made_up)).unwrap();
    }
    assert_eq!(queue.take(1, 1000, false).len(), 1);
    let another = client(1, 5);
    assert!(queue.push(another, queued_by(another)).is_err());
    let honest = client(2, 0);
    for _ in 0..2 {
        assert!(queue.check_room(honest).is_ok());
        queue.push(honest, queued_by(honest)).unwrap();
    }
    assert!(queue.push(honest, queued_by(honest)).is_err());
    assert_eq!(queue.counts(), (4, 1));
    queue.finished(0, Duration::from_secs(1));
    assert_eq!(queue.take(1, 1000, false)[0].request.origin.client, honest);
}

#[test]
fn a_request_waits_for_memory_while_smaller_ones_pass() {
    let queue = Queue::new(8, 8);
    for (key, bytes) in [(1, 10), (2, 30), (3, 10)] {
        let client = client(1, key);
        let queued = |id| QueuedRequest {
            kv_bytes: bytes,
            ..queued_by(client)(id)
        };
        queue.push(client, queued).unwrap();
    }
    let ids =
        |requests: Vec<QueuedRequest>| requests.iter().map(|queued| queued.id).collect::<Vec<_>>();
    assert_eq!(ids(queue.take(8, 39, true)), [0, 2]);
    assert!(queue.take(8, 29, false).is_empty());
    assert_eq!(ids(queue.take(8, 40, false)), [1]);
}

#[test]
fn an_abort_cancels_all_requests_and_still_hands_them_over() {
    let queue = Queue::new(8, 1);
    for _ in 0..3 {
        queue.push(ONE, queued).unwrap();
    }
    let running = queue.take(1, 1000, false);
    queue.close(QueueGate::Aborting);
    assert!(running[0].is_cancelled());
    let waiting = queue.take(5, 1000, false);
    assert_eq!(waiting.len(), 2);
    assert!(waiting.iter().all(QueuedRequest::is_cancelled));
    queue.close(QueueGate::Draining);
    assert_eq!(queue.gate(), QueueGate::Aborting);
}

#[test]
fn retry_after_grows_with_the_queue_and_the_length_of_requests() {
    let queue = Queue::new(10, 1);
    for _ in 0..40 {
        queue.finished(99, Duration::from_secs(4));
    }
    for _ in 0..11 {
        queue.push(ONE, queued).unwrap();
    }
    match queue.push(ONE, queued) {
        Err(AdmissionError::QueueFull { retry_after_s, .. }) => {
            assert!((40..=60).contains(&retry_after_s), "{retry_after_s}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_closed_gate_wakes_the_runner_and_refuses_callers() {
    let queue = Arc::new(Queue::new(1, 1));
    let waiter = {
        let queue = Arc::clone(&queue);
        std::thread::spawn(move || queue.take(1, 1000, true).len())
    };
    queue.close(QueueGate::Draining);
    assert_eq!(waiter.join().unwrap(), 0);
    assert_eq!(queue.push(ONE, queued), Err(AdmissionError::ShuttingDown));
    queue.close(QueueGate::Stopped);
    queue.close(QueueGate::Draining);
    assert_eq!(queue.push(ONE, queued), Err(AdmissionError::Stopped));
}

#[test]
fn requests_that_wait_too_long_are_handed_back() {
    let queue = Queue::new(4, 1);
    queue.push(ONE, queued).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(queue.take_expired(Duration::from_secs(60)).is_empty());
    assert_eq!(queue.take_expired(Duration::from_millis(1)).len(), 1);
    assert_eq!(queue.counts(), (0, 0));
}

#[test]
fn without_experts_nothing_is_admitted_and_nothing_waits() {
    let queue = Queue::new(4, 1);
    queue.push(ONE, queued).unwrap();
    queue.push(ONE, queued).unwrap();
    assert_eq!(queue.take(1, 1000, false).len(), 1);
    assert_eq!(queue.set_experts_available(false).len(), 1);
    assert_eq!(queue.counts(), (0, 1), "what runs goes on");
    assert_eq!(
        queue.push(ONE, queued),
        Err(AdmissionError::ExpertsUnavailable)
    );
    assert!(queue.set_experts_available(true).is_empty());
    queue.push(ONE, queued).unwrap();
}
