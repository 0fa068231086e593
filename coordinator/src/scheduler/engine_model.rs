//! The engine as the scheduler's model.

use super::kv_memory::BytesOf;
use super::model::{StepChunk, StepError, StepModel, StepResult, Want};
use crate::engine::{Chunk, Engine, EngineError, LogitsWanted, Sequence, StepOutput};

impl StepModel for Engine {
    type Sequence = Sequence;
    type Output<'a> = StepOutput<'a>;

    fn new_sequence(&self) -> Sequence {
        Engine::new_sequence(self)
    }

    fn step(
        &mut self,
        chunks: &mut [StepChunk<'_, Sequence>],
    ) -> Result<StepOutput<'_>, StepError> {
        let mut chunks: Vec<Chunk<'_>> = chunks
            .iter_mut()
            .map(|chunk| Chunk {
                sequence: &mut *chunk.sequence,
                tokens: chunk.tokens,
                logits: match chunk.want {
                    Want::Nothing => LogitsWanted::None,
                    Want::Last => LogitsWanted::Last,
                },
                cancelled: Some(chunk.cancelled),
            })
            .collect();
        Engine::step(self, &mut chunks).map_err(|error| match error {
            EngineError::Experts(error) => StepError::Experts(error.to_string()),
            other => StepError::Engine(other.to_string()),
        })
    }

    fn sequence_bytes(&self, chunk: usize) -> BytesOf {
        Box::new(Engine::sequence_bytes(self, chunk))
    }

    fn vocab(&self) -> usize {
        Engine::vocab(self)
    }

    fn context(&self) -> usize {
        Engine::context(self)
    }
}

impl StepResult for StepOutput<'_> {
    fn last_logits(&self, chunk: usize) -> &[f32] {
        self.logits(chunk)
    }

    fn cancelled(&self, chunk: usize) -> bool {
        StepOutput::cancelled(self, chunk)
    }
}
