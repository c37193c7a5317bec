//! How full the layer is that takes what a node writes. It is memory: full, it stops the node.

use rustix::fs::statvfs;

/// What is told, once each, in percent.
const LEVELS: [u8; 3] = [80, 90, 95];
/// Below this, all is forgotten and told again when it comes again.
const CALM: u8 = 70;

/// What was told last.
#[derive(Default)]
pub struct Fill {
    told: u8,
}

impl Fill {
    /// Looks at the root; what is worth telling.
    pub fn look(&mut self) -> Option<String> {
        // The overlay answers for its upper layer, so no server is asked.
        let root = statvfs("/").ok()?;
        let used = root.f_blocks.saturating_sub(root.f_bfree);
        let percent = (used * 100).checked_div(root.f_blocks)?;
        if !self.rises_to(u8::try_from(percent).unwrap_or(100)) {
            return None;
        }
        let mib = |blocks: u64| (blocks * root.f_frsize) >> 20;
        Some(format!(
            "what was written fills {percent} % of the memory that it may take, {} of {} MiB: delete \
             some of it, or reboot",
            mib(used),
            mib(root.f_blocks)
        ))
    }

    /// Whether a level is passed that was not told yet.
    fn rises_to(&mut self, percent: u8) -> bool {
        let level = LEVELS.into_iter().filter(|level| *level <= percent).max();
        let rises = level.is_some_and(|level| level > self.told);
        match level {
            Some(level) => self.told = self.told.max(level),
            None if percent < CALM => self.told = 0,
            None => {}
        }
        rises
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_is_told_once_until_it_is_over() {
        let mut fill = Fill::default();
        let told: Vec<bool> = [10, 79, 80, 85, 79, 81, 90, 99, 97, 69, 88, 75, 89]
            .into_iter()
            .map(|percent| fill.rises_to(percent))
            .collect();
        let expected = [
            false, false, true, false, false, false, true, true, false, false, true, false, false,
        ];
        assert_eq!(told, expected);
    }
}
