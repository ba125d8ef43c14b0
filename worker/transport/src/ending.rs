//! That nobody waits for a call any more: said once, seen by threads and tasks alike.

use tokio::sync::watch;

/// Clones are of one call.
#[derive(Clone, Debug)]
pub(crate) struct Ending(watch::Sender<bool>);

/// Ends the call when it is dropped, as tonic does with all it holds of a call whose client is gone.
#[derive(Debug)]
pub(crate) struct EndOnDrop(Ending);

impl Ending {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn end(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn has_come(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn comes(&self) {
        let mut seen = self.0.subscribe();
        seen.wait_for(|ended| *ended).await.expect("the sender is this one");
    }

    pub(crate) fn on_drop(&self) -> EndOnDrop {
        EndOnDrop(self.clone())
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}
