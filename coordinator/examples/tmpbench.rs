use std::sync::Arc;
use std::time::Instant;
use ds4_common::{expert::ExpertStore, gguf::GgufModel, kernels::Kernels, model::*};
use ds4_coordinator::{cluster::LocalBackend, engine::*};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let path = std::path::Path::new(&args[1]);
    if !path.exists() {
        let hp = synthetic::presets::flash(args[2].parse().unwrap());
        let t = Instant::now();
        let recipe = synthetic::Recipe { name: "flash".into(), seed: 1, ..Default::default() };
        println!("{} bytes in {:?}", synthetic::write(path, &hp, &recipe).unwrap(), t.elapsed());
    }
    let gguf = GgufModel::open(path).unwrap();
    let hp = HyperParams::from_metadata(gguf.metadata()).unwrap();
    let tensors = ModelTensors::bind(&gguf, &hp).unwrap();
    let store = ExpertStore::new(&hp, &tensors).unwrap();
    let kernels = args.get(3).map_or_else(Kernels::detect, |n| Kernels::named(n).unwrap());
    println!("{}", kernels.name());
    let backend = Arc::new(LocalBackend::new(store, kernels));
    let mut e = Engine::new(hp, &tensors, backend, &EngineConfig { kernels, numerics: Numerics::Full, threads: 0, context: 0 }).unwrap();
    let mut seq = e.new_sequence();
    for n in [512usize, 128, 32, 8, 1, 1, 1, 1, 1, 1, 1, 1] {
        let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 % 100_000) as u32 + seq.position() as u32).collect();
        let before = e.times().clone();
        let t = Instant::now();
        let mut c = [Chunk { sequence: &mut seq, tokens: &tokens, logits: LogitsWanted::Last, cancelled: None }];
        let first = e.step(&mut c).unwrap().logits(0)[0];
        let d = t.elapsed();
        print!("{n:4} tokens {:8.1} ms {:8.2} tok/s [{first}]", d.as_secs_f64() * 1e3, n as f64 / d.as_secs_f64());
        for s in Stage::ALL { print!(" {} {:.1}", s.name(), (e.times().of(s) - before.of(s)).as_secs_f64() * 1e3); }
        println!();
    }
}
