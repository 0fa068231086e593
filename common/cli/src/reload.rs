//! What SIGHUP makes a process read again.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use crate::systemd::ServiceManager;

type Reload = Arc<dyn Fn() -> Result<String> + Send + Sync>;

/// What can be read again while the process serves, each under a name for the log. More can be
/// added at any time.
#[derive(Default)]
pub struct Reloaders {
    entries: Mutex<Vec<(&'static str, Reload)>>,
    manager: Arc<ServiceManager>,
}

impl fmt::Debug for Reloaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.entries().iter().map(|(name, _)| *name).collect();
        f.debug_tuple("Reloaders").field(&names).finish()
    }
}

impl Reloaders {
    /// Nothing to reload yet; `manager` is told of each reload.
    #[must_use]
    pub fn new(manager: Arc<ServiceManager>) -> Self {
        Reloaders {
            entries: Mutex::default(),
            manager,
        }
    }

    /// Adds `what`, for example `certificates`, which `reload` reads again. It runs on an async
    /// thread, so it may read small files and no more. Its text says what is in use afterwards. If
    /// it fails, what was in use before has to stay in use.
    pub fn add(
        &self,
        what: &'static str,
        reload: impl Fn() -> Result<String> + Send + Sync + 'static,
    ) {
        self.lock().push((what, Arc::new(reload)));
    }

    /// Reads everything again, in the order in which it was added. Whatever cannot be read is
    /// logged and stays as it was.
    pub fn run(&self) {
        self.manager.reloading();
        for (what, reload) in self.entries() {
            match reload() {
                Ok(outcome) => tracing::info!("reload of the {what}: {outcome}"),
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "cannot reload the {what}: what was in use stays in use"
                ),
            }
        }
        self.manager.reloaded();
    }

    fn entries(&self) -> Vec<(&'static str, Reload)> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, Reload)>> {
        // Nothing that holds the lock can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_that_fails_does_not_keep_the_others_from_being_reloaded() {
        let reloaders = Reloaders::default();
        let count = Arc::new(AtomicUsize::new(0));
        for (name, fails) in [("first", true), ("second", false)] {
            let count = Arc::clone(&count);
            reloaders.add(name, move || {
                count.fetch_add(1, Ordering::Relaxed);
                anyhow::ensure!(!fails, "no such file");
                Ok("read".to_owned())
            });
        }
        reloaders.run();
        reloaders.run();
        assert_eq!(count.load(Ordering::Relaxed), 4);
        assert_eq!(
            format!("{reloaders:?}"),
            r#"Reloaders(["first", "second"])"#
        );
    }
}
