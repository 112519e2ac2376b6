//! A worker's cache: names, the one that was used longest ago leaves first.

use rustc_hash::FxHashMap;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    name: u64,
    older: u32,
    newer: u32,
}

#[derive(Debug)]
pub(crate) struct Recency {
    places: FxHashMap<u64, u32>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
}

impl Default for Recency {
    fn default() -> Self {
        Self { places: FxHashMap::default(), nodes: Vec::new(), free: Vec::new(), oldest: NONE, newest: NONE }
    }
}

impl Recency {
    pub(crate) fn has(&self, name: u64) -> bool {
        self.places.contains_key(&name)
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Makes a name the newest, whether it was there or not.
    pub(crate) fn touch(&mut self, name: u64) {
        let place = match self.places.get(&name) {
            Some(&place) => {
                self.unlink(place);
                place
            }
            None => self.enter(name),
        };
        let newest = std::mem::replace(&mut self.newest, place);
        let node = &mut self.nodes[place as usize];
        (node.older, node.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = place,
            newest => self.nodes[newest as usize].newer = place,
        }
    }

    /// Takes out the oldest.
    pub(crate) fn pop(&mut self) -> Option<u64> {
        let place = self.oldest;
        let name = self.nodes.get(place as usize)?.name;
        self.unlink(place);
        self.places.remove(&name);
        self.free.push(place);
        Some(name)
    }

    fn enter(&mut self, name: u64) -> u32 {
        let node = Node { name, older: NONE, newer: NONE };
        let place = match self.free.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.places.insert(name, place);
        place
    }

    fn unlink(&mut self, place: u32) {
        let Node { older, newer, .. } = self.nodes[place as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
    }
}
