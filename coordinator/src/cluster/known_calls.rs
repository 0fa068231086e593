//! Known calls: what each node computes before it counts as up, compared with the coordinator's own
//! file or, without one, with the answers of other nodes.
//!
//! They are few tiles, spread over the layers that the node holds, so that a node whose weights are
//! still on its disk reads a few megabytes. Which tiles these are depends on what it holds alone:
//! nodes that hold the same are asked the same.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use ds4_common::checksum::Checksum;
use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, MoeShape, Route};
use ds4_common::random::SplitMix64;
use ds4_common::tiles::{Holdings, Span, TileRect, TileSet};
use ds4_proto::wire::bytes_from_floats;

use super::local_fallback::FallbackExperts;

/// Calls to one node.
const CALLS: usize = 4;

/// One tile and the made-up token for which it is computed.
#[derive(Clone, Debug)]
pub(super) struct KnownCall {
    pub(super) batch: Arc<ExpertBatch>,
    pub(super) tile: TileRect,
}

impl KnownCall {
    /// The tile as the set that a call carries; `None` never happens for a tile that is held.
    pub(super) fn tiles(&self) -> Option<TileSet> {
        TileSet::new(self.batch.shape().grid, vec![self.tile]).ok()
    }
}

/// The known calls of a node that holds `held` of a model with `shape`.
pub(super) fn known_calls(shape: &MoeShape, held: &Holdings) -> Vec<KnownCall> {
    let layers: Vec<usize> = (0..shape.layers)
        .filter(|layer| held.layer(*layer).is_some())
        .collect();
    let count = CALLS.min(layers.len());
    let spread = |i: usize| layers[i * (layers.len() - 1) / (count - 1).max(1)];
    let call = |layer| {
        let tile = known_tile(layer, held.rects(layer))?;
        Some(KnownCall {
            batch: Arc::new(known_batch(shape, layer, tile)?),
            tile,
        })
    };
    (0..count).map(spread).filter_map(call).collect()
}

/// A call for one tile of what a node holds, another one each time.
pub(super) fn random_call(
    shape: &MoeShape,
    held: &Holdings,
    random: &mut SplitMix64,
) -> Option<KnownCall> {
    let layer = random.below(shape.layers.max(1));
    let rects = held.rects(layer);
    if rects.is_empty() {
        return None;
    }
    let rect = rects[random.below(rects.len())];
    let mut within = |span: Span| {
        let at = span.start + random.below(span.len() as usize) as u32;
        Span::new(at, at + 1)
    };
    let tile = TileRect {
        experts: within(rect.experts),
        blocks: within(rect.blocks),
    };
    let mut values = SplitMix64::new(random.next_u64());
    Some(KnownCall {
        batch: Arc::new(made_up_token(shape, layer, tile, &mut values)?),
        tile,
    })
}

/// One of the tiles in `rects`: the first by an order that is the same for every node.
fn known_tile(layer: usize, rects: &[TileRect]) -> Option<TileRect> {
    let tiles = rects.iter().flat_map(|rect| {
        let experts = rect.experts.start..rect.experts.end;
        let blocks = rect.blocks;
        experts.flat_map(move |expert| {
            (blocks.start..blocks.end).map(move |block| TileRect {
                experts: Span::new(expert, expert + 1),
                blocks: Span::new(block, block + 1),
            })
        })
    });
    tiles.min_by_key(|tile| seed(layer, *tile))
}

/// A number for each tile of a model.
fn seed(layer: usize, tile: TileRect) -> u64 {
    let at =
        (layer as u64) << 48 | u64::from(tile.experts.start) << 24 | u64::from(tile.blocks.start);
    SplitMix64::new(at).next_u64()
}

fn known_batch(shape: &MoeShape, layer: usize, tile: TileRect) -> Option<ExpertBatch> {
    let mut random = SplitMix64::named(seed(layer, tile), "known call");
    made_up_token(shape, layer, tile, &mut random)
}

/// One token that chooses the tile's expert. Plain values, which a node quantises itself, fit every
/// type of weights.
fn made_up_token(
    shape: &MoeShape,
    layer: usize,
    tile: TileRect,
    random: &mut SplitMix64,
) -> Option<ExpertBatch> {
    let routes = (0..shape.experts_used as u32).map(|slot| Route {
        expert: (tile.experts.start + slot) % shape.grid.experts,
        weight: 0.5 + random.unit() as f32,
    });
    let routes = routes.collect();
    let input = (0..shape.hidden).map(|_| random.signed_unit()).collect();
    let fields = BatchFields {
        layer,
        tokens: 1,
        routes,
        input: ExpertInput::F32(input),
        round: true,
    };
    ExpertBatch::new(*shape, fields).ok()
}

/// Checksum of the bits of rows, whoever computed them for whichever call.
pub(super) fn digest(rows: &[u8]) -> u64 {
    let mut sum = Checksum::new(0);
    sum.bytes(rows);
    sum.finish()
}

/// The answers to known calls, and whose they are.
#[derive(Debug)]
pub(super) struct KnownAnswers {
    own: Option<Arc<dyn FallbackExperts>>,
    /// By layer and tile. At most [`CALLS`] for each set of tiles that some node holds.
    answers: Mutex<HashMap<(usize, TileRect), KnownAnswer>>,
}

/// What rows have to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownAnswer {
    pub(super) digest: u64,
    /// Who computed it first: a node, or this process.
    pub(super) by: Arc<str>,
}

impl KnownAnswers {
    /// Answers that `own` computes, or else the first node that is asked.
    pub(super) fn new(own: Option<Arc<dyn FallbackExperts>>) -> Self {
        KnownAnswers {
            own,
            answers: Mutex::default(),
        }
    }

    /// Compares the rows of `node` with what they have to be.
    ///
    /// # Errors
    /// They differ: the answer as it should be. Blocks while this process computes it.
    pub(super) fn compare(
        &self,
        call: &KnownCall,
        node: &Arc<str>,
        rows: &[u8],
    ) -> Result<(), KnownAnswer> {
        let found = digest(rows);
        let key = (call.batch.layer, call.tile);
        let known = self.lock().get(&key).cloned();
        let known = match known.or_else(|| self.compute(call)) {
            Some(answer) => answer,
            None => KnownAnswer {
                digest: found,
                by: Arc::clone(node),
            },
        };
        let known = match self.lock().entry(key) {
            Entry::Occupied(first) => first.get().clone(),
            Entry::Vacant(place) => place.insert(known).clone(),
        };
        if known.digest != found {
            return Err(known);
        }
        Ok(())
    }

    fn compute(&self, call: &KnownCall) -> Option<KnownAnswer> {
        let own = self.own.as_ref()?;
        let mut rows = Vec::new();
        // A pool of its own: this is none of the engine's threads.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pool = pool.ok()?;
        let computed = pool.install(|| own.compute(&call.batch, 0..1, call.tile, &mut rows));
        if let Err(error) = computed {
            tracing::warn!(%error, "cannot compute a known call from the coordinator's own file");
            return None;
        }
        Some(KnownAnswer {
            digest: digest(&bytes_from_floats(&rows)),
            by: "the coordinator's own file".into(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(usize, TileRect), KnownAnswer>> {
        // An entry is whole or absent.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::scripted::{GRID, SHAPE, rows};

    fn bytes(call: &KnownCall) -> Vec<u8> {
        bytes_from_floats(&rows(GRID, &call.batch, &[call.tile]).0).to_vec()
    }

    #[test]
    fn calls_are_spread_over_the_layers_and_inside_of_what_is_held() {
        let halves = GRID.cut(1, 3).expect("cut");
        let layers = vec![
            vec![halves[0]],
            vec![halves[2], halves[1]],
            Vec::new(),
            vec![halves[2]],
        ];
        let held = Holdings::new(GRID, layers).expect("holdings");
        let calls = known_calls(&SHAPE, &held);
        let asked: Vec<usize> = calls.iter().map(|call| call.batch.layer).collect();
        assert_eq!(asked, [0, 1, 3]);
        for call in &calls {
            assert!(held.covers(call.batch.layer, call.tile), "{}", call.tile);
            assert_eq!(call.batch.reply_rows(0..1, &[call.tile]), 1, "it is chosen");
            assert!(call.batch.is_finite());
        }
        let whole = Holdings::uniform(GRID, SHAPE.layers, TileSet::whole(GRID));
        let again = known_calls(&SHAPE, &whole);
        assert_eq!(again.len(), CALLS);
        let same = known_calls(&SHAPE, &whole);
        assert!(again.iter().zip(&same).all(|(a, b)| a.batch == b.batch));
        let none = Holdings::new(GRID, vec![Vec::new(); SHAPE.layers]).expect("holdings");
        assert!(known_calls(&SHAPE, &none).is_empty());
    }

    #[test]
    fn without_a_file_the_first_answer_is_the_one_to_agree_with() {
        let whole = Holdings::uniform(GRID, SHAPE.layers, TileSet::whole(GRID));
        let answers = KnownAnswers::new(None);
        let [first, second]: [Arc<str>; 2] = ["a:1".into(), "b:1".into()];
        for call in known_calls(&SHAPE, &whole) {
            let right = bytes(&call);
            let mut wrong = right.clone();
            wrong[0] ^= 1;
            assert_eq!(answers.compare(&call, &first, &right), Ok(()));
            assert_eq!(answers.compare(&call, &second, &right), Ok(()));
            let known = answers.compare(&call, &second, &wrong);
            let expected = KnownAnswer {
                digest: digest(&right),
                by: Arc::clone(&first),
            };
            assert_eq!(known, Err(expected));
        }
    }
}
