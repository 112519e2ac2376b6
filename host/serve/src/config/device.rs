//! What computes the model, by name: `cpu`, `sim`, or CUDA devices by their numbers.
//!
//! **Invariant:** a list of devices is neither empty nor names one twice.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A kind of device, and which ones of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Words", into = "Words")]
pub enum Device {
    /// This machine's cores.
    #[default]
    Cpu,
    /// No computation: a cost model and made-up tokens, for tests of everything else.
    Sim,
    /// CUDA devices by number; workers take turns over them.
    Cuda(Vec<u32>),
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "`engine.device` is a word or a list of words")]
enum Words {
    One(String),
    Several(Vec<String>),
}

impl JsonSchema for Device {
    fn schema_name() -> Cow<'static, str> {
        "Device".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "pattern": "^(cpu|sim|cuda(:[0-9]+)?)$" },
                { "type": "array", "items": { "type": "string", "pattern": "^cuda(:[0-9]+)?$" }, "minItems": 1 },
            ],
        })
    }
}

impl Device {
    /// The CUDA devices that are asked for.
    pub fn cuda(&self) -> &[u32] {
        match self {
            Self::Cuda(devices) => devices,
            Self::Cpu | Self::Sim => &[],
        }
    }
}

/// The name of a CUDA device, as it stands in configurations and logs.
pub fn cuda_name(device: u32) -> String {
    format!("cuda:{device}")
}

/// The number in `cuda:N`; `cuda` alone is the first.
fn cuda_number(word: &str) -> Option<u32> {
    let number = word.strip_prefix("cuda")?;
    if number.is_empty() {
        return Some(0);
    }
    let number = number.strip_prefix(':')?;
    // `parse` takes a sign, too.
    number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse().ok()).flatten()
}

impl TryFrom<Words> for Device {
    type Error = String;

    fn try_from(words: Words) -> Result<Self, String> {
        let words = match words {
            Words::One(word) => {
                return match (word.as_str(), cuda_number(&word)) {
                    ("cpu", _) => Ok(Self::Cpu),
                    ("sim", _) => Ok(Self::Sim),
                    (_, Some(number)) => Ok(Self::Cuda(vec![number])),
                    (_, None) => Err(format!(
                        "`engine.device` is `cpu`, `sim`, `cuda`, `cuda:N`, or a list such as `[\"cuda:0\", \"cuda:1\"]`, not `{word}`"
                    )),
                };
            }
            Words::Several(words) => words,
        };
        let mut devices = Vec::with_capacity(words.len());
        for word in &words {
            let Some(number) = cuda_number(word) else {
                return Err(format!(
                    "a list in `engine.device` names CUDA devices, such as `[\"cuda:0\", \"cuda:1\"]`, not `{word}`"
                ));
            };
            if devices.contains(&number) {
                let name = cuda_name(number);
                return Err(format!(
                    "`engine.device` names `{name}` twice; workers take turns over the list, so name each device once"
                ));
            }
            devices.push(number);
        }
        match devices.is_empty() {
            true => Err("the list in `engine.device` is empty; name a device, such as `cuda:0`".to_owned()),
            false => Ok(Self::Cuda(devices)),
        }
    }
}

impl From<Device> for Words {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu => Self::One("cpu".to_owned()),
            Device::Sim => Self::One("sim".to_owned()),
            Device::Cuda(devices) => match devices.as_slice() {
                [one] => Self::One(cuda_name(*one)),
                several => Self::Several(several.iter().copied().map(cuda_name).collect()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;

    fn parse(value: &str) -> Result<Engine, String> {
        toml::from_str(&format!("device = {value}")).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_are_named_alone_or_in_a_list() {
        for (value, device) in [
            ("\"cpu\"", Device::Cpu),
            ("\"sim\"", Device::Sim),
            ("\"cuda\"", Device::Cuda(vec![0])),
            ("\"cuda:3\"", Device::Cuda(vec![3])),
            ("[\"cuda\"]", Device::Cuda(vec![0])),
            ("[\"cuda:1\", \"cuda:0\"]", Device::Cuda(vec![1, 0])),
        ] {
            let engine = parse(value).expect(value);
            assert_eq!(engine.device, device, "{value}");
            let written = toml::to_string(&engine).expect("it can be written");
            assert_eq!(toml::from_str::<Engine>(&written).expect("and read again"), engine);
        }
    }

    #[test]
    fn other_names_are_refused_with_those_that_there_are() {
        for (value, words) in [
            ("\"gpu\"", ["`cpu`", "`cuda:N`, or a list", "not `gpu`"]),
            ("\"cuda:\"", ["`cuda:N`", "`sim`", "not `cuda:`"]),
            ("\"cuda:-1\"", ["`cuda:N`", "engine.device", "not `cuda:-1`"]),
            ("\"cuda:+1\"", ["`cuda:N`", "engine.device", "not `cuda:+1`"]),
            ("\"cuda:99999999999\"", ["`cuda:N`", "engine.device", "not `cuda:99999999999`"]),
            ("\"CUDA:0\"", ["`cuda:N`", "engine.device", "not `CUDA:0`"]),
            ("0", ["engine.device", "a word", "or a list of words"]),
            ("[]", ["engine.device", "is empty", "`cuda:0`"]),
            ("[\"cuda:0\", \"cpu\"]", ["a list", "CUDA devices", "not `cpu`"]),
            ("[\"cuda\", \"cuda:0\"]", ["engine.device", "`cuda:0` twice", "take turns"]),
        ] {
            let error = parse(value).expect_err(value);
            for word in words {
                assert!(error.contains(word), "{value}: `{word}` is missing in {error}");
            }
        }
    }
}
