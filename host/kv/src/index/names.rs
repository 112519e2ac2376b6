//! Names of runs, as the writer changes them: pages that are filled, cut and given up, and what the table has of them.
//!
//! **Invariant:** the table has the first name of each page, unless a name came twice. Of others it has those where a
//! run ends or a holder stops, as far as there is room: events begin there.

use super::pages::{NAMES, Page, page_end};
use super::runs::{NONE, Words, pack};
use super::store::TOUCHED;
use super::writer::{Writer, members};

impl Writer<'_> {
    /// Names blocks of a run that end it, from a depth on; how many there was room for.
    pub(super) fn write(&mut self, run: u32, depth: u32, keys: &[u64]) -> u32 {
        let tail = self.kin(run).tail;
        let mut at = 0;
        if tail != NONE && !(depth as usize).is_multiple_of(NAMES) {
            self.own(run, tail);
            at = fill(self.page(tail), depth, keys);
        }
        while at < keys.len() {
            // Where pages begin.
            let mut begins = [0; TOUCHED];
            let mut some = [0; TOUCHED];
            let (mut count, mut begin) = (0, at);
            while count < TOUCHED && begin < keys.len() {
                (begins[count], some[count]) = (begin, keys[begin]);
                count += 1;
                begin = (page_end(depth + begin as u32) - depth) as usize;
            }
            let mut numbers = [0; TOUCHED];
            self.shared.table.touch(&some[..count], &mut numbers);
            for page in 0..count {
                at = begins[page];
                if self.shared.table.is_full(&self.books.table, numbers[page]) {
                    if !self.make_room(keys[at]) {
                        return at as u32;
                    }
                    self.shared.table.touch(&some[..count], &mut numbers);
                }
                if !self.write_page(run, depth + at as u32, (numbers[page], &keys[at..])) {
                    return at as u32;
                }
            }
            at = begin.min(keys.len());
        }
        at as u32
    }

    /// Names blocks of a run in a page that begins with them; their segment of the table has room. False: there is
    /// none for a page.
    fn write_page(&mut self, run: u32, depth: u32, (number, keys): (u32, &[u64])) -> bool {
        let before = self.kin(run).tail;
        let Some(page) = self.books.pages.take(&self.shared.pages, (run, depth), before) else {
            return false;
        };
        let kin = self.books.runs.of_mut(run);
        kin.tail = page;
        kin.pages += 1;
        fill(self.page(page), depth, keys);
        self.shared.table.put(&mut self.books.table, number, keys[0], pack(page, depth));
        true
    }

    /// Lets a page name the run that it is of.
    fn own(&mut self, run: u32, number: u32) {
        let page = self.page(number);
        let named = page.run();
        if named != run {
            page.set_run(run, page.first());
            self.books.runs.of_mut(run).pages += 1;
            self.books.runs.release(&self.shared.runs, named, 1);
        }
    }

    fn put(&mut self, key: u64, place: u64) {
        self.shared.table.put(&mut self.books.table, self.shared.table.number(key), key, place);
    }

    fn erase(&mut self, key: u64, place: u64) {
        self.shared.table.erase(&mut self.books.table, self.shared.table.number(key), (key, place));
    }

    /// Makes room in a key's segment. False: there is none.
    fn make_room(&mut self, key: u64) -> bool {
        // A split may leave all entries on the side of the key; a directory has few bits.
        while self.shared.table.is_full(&self.books.table, self.shared.table.number(key)) {
            if !self.shared.table.split(&mut self.books.table, self.shared.table.number(key)) {
                return false;
            }
        }
        true
    }

    /// The page of a block of a run. Cost: looks at the pages behind it, unless it is near those that an event named.
    fn page_of(&self, run: u32, depth: u32) -> Option<(u32, &Page)> {
        for number in self.books.near {
            let before = self.shared.pages.get(number).map_or(NONE, Page::before);
            for number in [number, before] {
                let page = self.shared.pages.get(number).filter(|page| page.first() <= depth);
                let found =
                    page.filter(|page| self.shared.owner(page, depth).is_some_and(|owner| owner.0 == run));
                if let Some(page) = found {
                    return Some((number, page));
                }
            }
        }
        self.pages(run).map(|(number, page, _)| (number, page)).find(|(_, page)| page.first() <= depth)
    }

    /// Has the table know a block at which a run ends or a holder stops, if there is room.
    pub(super) fn mark(&mut self, run: u32, depth: u32) {
        let Some((number, page)) = self.page_of(run, depth) else { return };
        if let (true, Some(key)) = (page.first() != depth, page.name(depth))
            && self.make_room(key)
        {
            self.put(key, pack(number, depth));
        }
    }

    /// Takes a block out of the table unless it is there for another reason.
    pub(super) fn unmark(&mut self, run: u32, depth: u32) {
        let words = self.run(run);
        let is_end = words.span().end == depth + 1;
        let stops = words.above().1 == NONE && members(words).any(|(_, member)| member.stop == depth + 1);
        if !is_end && !stops {
            self.unmark_page(run, depth);
        }
    }

    fn unmark_page(&mut self, run: u32, depth: u32) {
        let Some((number, page)) = self.page_of(run, depth) else { return };
        if let (true, Some(key)) = (page.first() != depth, page.name(depth)) {
            self.erase(key, pack(number, depth));
        }
    }

    /// Gives up pages behind a run's end, which was further on.
    pub(super) fn trim(&mut self, run: u32, end_was: u32) {
        let end = self.run(run).span().end;
        if end < end_was {
            self.unmark_page(run, end_was - 1);
        }
        let mut number = self.kin(run).tail;
        while number != NONE {
            let page = self.page(number);
            let first = page.first();
            if first < end {
                break;
            }
            let this = number;
            self.erase(page.name(first).unwrap_or_default(), pack(this, first));
            let named = page.run();
            number = page.before();
            self.books.pages.give(&self.shared.pages, this);
            self.books.runs.release(&self.shared.runs, named, 1);
        }
        self.books.runs.of_mut(run).tail = number;
    }

    /// Hands pages before a depth within a run to a new run. False: there is no room, and nothing changed.
    pub(super) fn divide_pages(&mut self, run: u32, upper: u32, at: u32) -> bool {
        let end = self.run(run).span().end;
        let mut behind = None;
        let mut found = None;
        for (number, page, _) in self.pages(run) {
            if page.first() <= at {
                found = Some((number, page.first()));
                break;
            }
            behind = Some(number);
        }
        let Some((number, first)) = found else { return false };
        let page = self.page(number);
        if first == at {
            self.books.runs.of_mut(upper).tail = page.before();
            page.set_before(NONE);
            return true;
        }
        let key = page.name(at).unwrap_or_default();
        if !self.make_room(key) {
            return false;
        }
        let Some(copy) = self.books.pages.take(&self.shared.pages, (run, at), NONE) else { return false };
        self.books.runs.of_mut(run).pages += 1;
        self.books.runs.of_mut(upper).tail = number;
        match behind {
            Some(behind) => self.page(behind).set_before(copy),
            None => self.books.runs.of_mut(run).tail = copy,
        }
        self.put(key, pack(copy, at));
        let into = self.page(copy);
        into.set_name(at, key);
        for depth in at + 1..page_end(at).min(end) {
            let key = page.name(depth).unwrap_or_default();
            into.set_name(depth, key);
            let table = &self.shared.table;
            if table.find(table.number(key), key) == Some(pack(number, depth)) {
                self.put(key, pack(copy, depth));
            }
        }
        true
    }
}

/// Writes names into a page until it is full; how many.
fn fill(page: &Page, depth: u32, keys: &[u64]) -> usize {
    let count = keys.len().min((page_end(depth) - depth) as usize);
    page.set_names(depth, &keys[..count]);
    count
}
