//! The bytes of a slice's tensors, read from the whole model.

use std::path::Path;

use super::head::SliceHead;
use super::tensors::{Projection, SliceTensor, features};
use super::{MAX_PARTS, SliceError};
use crate::gguf::{GgufError, GgufModel, Tensor};
use crate::model::{Fingerprint, HyperParams, ModelTensors};
use crate::quant::{Layout, PANEL_ROWS, to_panels};
use crate::tiles::{BLOCK_WIDTH, Grid, Holdings};

/// Bytes of the model that are read at once where a tensor takes a part of each row.
const WINDOW: u64 = 4 << 20;

/// Runs from this length on are read one by one.
const LONG_RUN: u64 = 256 << 10;

/// A model that slices are cut from. None of its weights become resident. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WholeModel {
    gguf: GgufModel,
    hp: HyperParams,
    fingerprint: Fingerprint,
    /// Gate, up and down of every layer.
    experts: Vec<[Tensor; 3]>,
}

impl WholeModel {
    /// A model to cut slices from; reads the samples of its fingerprint.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn new(
        gguf: GgufModel,
        hp: HyperParams,
        tensors: &ModelTensors,
    ) -> Result<Self, GgufError> {
        let fingerprint = Fingerprint::of(&gguf, &hp)?;
        let experts = tensors
            .layers
            .iter()
            .map(|l| [&l.gate_exps, &l.up_exps, &l.down_exps].map(Tensor::clone))
            .collect();
        Ok(WholeModel {
            gguf,
            hp,
            fingerprint,
            experts,
        })
    }

    /// Hyper-parameters of the model.
    #[must_use]
    pub fn hyper_params(&self) -> &HyperParams {
        &self.hp
    }

    /// Fingerprint of the model, which every slice of it carries.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Tile grid of the model.
    #[must_use]
    pub fn grid(&self) -> Grid {
        Grid::of(self.hp.experts, self.hp.expert_width)
    }

    /// Layers with routed experts.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.experts.len()
    }

    /// The path that messages name.
    #[must_use]
    pub fn name(&self) -> &Path {
        self.gguf.name()
    }

    /// The head of a slice of these tiles. Tensors that cannot be stored in the order of `layout`
    /// are stored plainly.
    ///
    /// # Errors
    /// The tiles are not of this model, there are none or too many, or a weight format has blocks
    /// wider than a tile.
    pub fn head(&self, holdings: &Holdings, layout: Layout) -> Result<SliceHead, SliceError> {
        let file = || self.name().to_path_buf();
        if holdings.layers() != self.layers() {
            return Err(SliceError::Layer {
                file: file(),
                layer: holdings.layers(),
                layers: self.layers(),
            });
        }
        let parts = (0..self.layers()).map(|l| holdings.rects(l).len()).sum();
        if parts > MAX_PARTS {
            return Err(SliceError::Parts {
                file: file(),
                found: parts,
            });
        }
        let types: Vec<_> = self
            .experts
            .iter()
            .enumerate()
            .map(|(l, tensors)| {
                let held = holdings.layer(l).is_some();
                held.then(|| [tensors[0].ty(), tensors[1].ty(), tensors[2].ty()])
            })
            .collect();
        for tensors in &self.experts {
            for tensor in tensors {
                let block = tensor.ty().block_elements();
                if !BLOCK_WIDTH.is_multiple_of(block) {
                    return Err(SliceError::Tensor {
                        file: file(),
                        tensor: tensor.name().to_owned(),
                        problem: format!("has blocks of {block}, wider than a tile"),
                    });
                }
            }
        }
        let name = self.gguf.metadata().optional_str("general.name")?;
        let model = (&self.hp, name, self.fingerprint);
        SliceHead::new(file(), model, holdings, &types, layout)
    }

    /// Reads the bytes of one tensor of a slice of this model.
    ///
    /// # Panics
    /// `tensor` is of another model.
    #[must_use]
    pub fn cut(&self, tensor: &SliceTensor) -> CutTensor {
        let [gate, up, down] = &self.experts[tensor.layer];
        let (hidden, width) = (self.hp.hidden as u64, self.hp.expert_width as u64);
        // Shapes were checked when the model's tensors were bound.
        let bytes = |source: &Tensor, columns: u64| source.ty().row_bytes(columns).unwrap_or(0);
        let features = features(&self.hp, tensor.rect);
        let experts = u64::from(tensor.rect.experts.start)..u64::from(tensor.rect.experts.end);
        let count = experts.end - experts.start;
        let (source, first, run, stride, count) = match tensor.projection {
            Projection::Gate | Projection::Up => {
                let gate_or_up = if tensor.projection == Projection::Gate {
                    gate
                } else {
                    up
                };
                let row = bytes(gate_or_up, hidden);
                let first = (experts.start * width + features.start) * row;
                let run = (features.end - features.start) * row;
                (gate_or_up, first, run, width * row, count)
            }
            Projection::Down => {
                let row = bytes(down, width);
                let first = experts.start * hidden * row + bytes(down, features.start);
                let run = bytes(down, features.end - features.start);
                (down, first, run, row, count * hidden)
            }
        };
        // Whole rows lie behind each other.
        let whole = run == stride;
        let packed = Packed {
            source: source.clone(),
            first,
            run: if whole { run * count } else { run },
            stride,
            bytes: run * count,
            window: Vec::new(),
        };
        CutTensor {
            packed,
            panel: match tensor.layout {
                Layout::Plain => None,
                Layout::Panels => Some(PANEL_ROWS as u64 * bytes(source, tensor.dims[0])),
            },
            rows: Vec::new(),
            turned: Vec::new(),
        }
    }
}

/// One tensor of a slice, read from the whole model.
#[derive(Clone, Debug)]
pub struct CutTensor {
    packed: Packed,
    /// Bytes of a panel, where the tensor is stored in panels.
    panel: Option<u64>,
    /// Panels before and after they are turned.
    rows: Vec<u8>,
    turned: Vec<u8>,
}

impl CutTensor {
    /// Bytes of the whole tensor.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.packed.bytes
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `out` would reach beyond the end, or the file cannot be read.
    pub fn read(&mut self, mut offset: u64, mut out: &mut [u8]) -> Result<(), SliceError> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.bytes()) {
            let beyond = std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "range outside of the tensor",
            );
            return Err(self.packed.failed(beyond));
        }
        let Some(panel) = self.panel else {
            return self.packed.read(offset, out);
        };
        while !out.is_empty() {
            let inside = offset % panel;
            let wanted = (inside + out.len() as u64).div_ceil(panel);
            let panels = wanted.min((WINDOW / panel).max(1));
            let bytes = (panels * panel) as usize;
            self.rows.resize(bytes, 0);
            self.turned.resize(bytes, 0);
            self.packed.read(offset - inside, &mut self.rows)?;
            to_panels(&self.rows, panel as usize / PANEL_ROWS, &mut self.turned);
            let found = &self.turned[inside as usize..];
            let taken = found.len().min(out.len());
            out[..taken].copy_from_slice(&found[..taken]);
            offset += taken as u64;
            out = &mut out[taken..];
        }
        Ok(())
    }
}

/// Equal runs of bytes at equal distances of a tensor of the whole model, packed.
#[derive(Clone, Debug)]
struct Packed {
    source: Tensor,
    /// Where the first run starts.
    first: u64,
    /// Bytes of a run.
    run: u64,
    /// From the start of a run to that of the next.
    stride: u64,
    /// Of all runs.
    bytes: u64,
    window: Vec<u8>,
}

impl Packed {
    /// Fills `out` with the packed bytes from `offset` on, which must be there.
    fn read(&mut self, mut offset: u64, mut out: &mut [u8]) -> Result<(), SliceError> {
        while !out.is_empty() {
            let taken = if self.run < LONG_RUN {
                self.gather(offset, out)?
            } else {
                self.stretch(offset, out)?
            };
            offset += taken as u64;
            out = &mut out[taken..];
        }
        Ok(())
    }

    /// Fills `out` up to the end of the run at `offset`; returns the number of bytes.
    fn stretch(&self, offset: u64, out: &mut [u8]) -> Result<usize, SliceError> {
        let (index, inside) = (offset / self.run, offset % self.run);
        let taken = (self.run - inside).min(out.len() as u64) as usize;
        self.source
            .read_at(&mut out[..taken], self.first + index * self.stride + inside)
            .map_err(|problem| self.failed(problem))?;
        Ok(taken)
    }

    /// Reads the model from `offset`'s place on over the gaps between short runs, as far as a
    /// window goes, and fills `out` with the runs; returns the number of bytes.
    fn gather(&mut self, offset: u64, out: &mut [u8]) -> Result<usize, SliceError> {
        let (index, inside) = (offset / self.run, offset % self.run);
        let wanted = (inside + out.len() as u64).div_ceil(self.run);
        let runs = wanted
            .min(WINDOW / self.stride)
            .clamp(1, self.bytes / self.run - index);
        let span = (runs - 1) * self.stride + self.run - inside;
        // One short run, or no more than the window.
        self.window.resize(span as usize, 0);
        self.source
            .read_at(&mut self.window, self.first + index * self.stride + inside)
            .map_err(|problem| self.failed(problem))?;
        // As if the window began where the first run does.
        let (inside, run) = (inside as usize, self.run as usize);
        let mut taken = 0;
        for start in (0..runs as usize).map(|r| r * self.stride as usize) {
            let from = start.max(inside) - inside;
            let piece = &self.window[from..start + run - inside];
            let n = piece.len().min(out.len() - taken);
            out[taken..taken + n].copy_from_slice(&piece[..n]);
            taken += n;
        }
        Ok(taken)
    }

    fn failed(&self, problem: std::io::Error) -> SliceError {
        SliceError::Gguf(GgufError::Io {
            file: self.source.file().to_path_buf(),
            problem,
        })
    }
}
