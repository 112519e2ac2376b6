//! Writes adapters, for tests.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};

use crate::digest::mix;

/// An adapter that is to be written.
pub(crate) struct Written {
    pub(crate) config: Value,
    /// Tensors by name: shape and values.
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Written {
    /// Random weights of one rank, for parts with their inputs and outputs in every layer.
    pub(crate) fn random(seed: u64, layers: usize, rank: usize, parts: &[(&str, [usize; 2])]) -> Self {
        let names: Vec<&str> = parts.iter().map(|(part, _)| part.rsplit('.').next().unwrap()).collect();
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none",
            "r": rank, "lora_alpha": 2 * rank, "target_modules": names,
        });
        let mut tensors = BTreeMap::new();
        for layer in 0..layers {
            for (part, [inputs, outputs]) in parts {
                for (factor, shape) in [("A", vec![rank, *inputs]), ("B", vec![*outputs, rank])] {
                    let name = name(layer, part, factor);
                    let seed = name.bytes().fold(seed, |hash, byte| mix(hash ^ u64::from(byte)));
                    let value =
                        |index: usize| (mix(seed ^ index as u64) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                    let values = (0..shape.iter().product()).map(value).map(|value| value * 0.3).collect();
                    tensors.insert(name, (shape, values));
                }
            }
        }
        Self { config, tensors }
    }

    /// Writes both files.
    pub(crate) fn write(&self, folder: &Path) {
        std::fs::write(folder.join("adapter_config.json"), self.config.to_string()).unwrap();
        let bytes: Vec<Vec<u8>> = self
            .tensors
            .values()
            .map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        let views = self.tensors.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
            (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        serialize_to_file(views, None, &folder.join("adapter_model.safetensors")).unwrap();
    }
}

/// Name of a tensor.
pub(crate) fn name(layer: usize, part: &str, factor: &str) -> String {
    format!("base_model.model.model.layers.{layer}.{part}.lora_{factor}.weight")
}
