//! What is going on while servers start.

use std::{
    collections::{HashMap, HashSet},
    io::IsTerminal,
    time::Duration,
};

use futures::TryStreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::time::Instant;

use crate::{
    api::mcp_server::{McpServer, McpServerStatus, Phase},
    cli::{client::explain, exit::Failure},
};

/// How long people are kept waiting for the summary.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long they are for a server that runs and does not answer.
const SILENCE: Duration = Duration::from_secs(30);

/// Shows how servers come up, until each is ready, stopped on purpose, or in trouble.
pub async fn show(client: Client) -> Result<(), Failure> {
    let api: Api<McpServer> = Api::all(client);
    let servers = api.list(&ListParams::default()).await.map_err(|error| Failure::failed(explain(&error)))?;
    if servers.items.is_empty() {
        return Ok(());
    }
    let mut board = Board::new(servers.items.iter().map(|s| s.name_any().len()).max().unwrap_or(0));
    let mut open: HashSet<String> = servers.items.iter().map(id).collect();
    let follow = async {
        let events = watcher(api, watcher::Config::default()).default_backoff();
        futures::pin_mut!(events);
        // Since when a server runs without answering as it should.
        let mut silent: HashMap<String, Instant> = HashMap::new();
        while !open.is_empty() {
            let give_up = silent.values().min().map_or_else(|| Instant::now() + PATIENCE, |since| *since + SILENCE);
            let event = tokio::select! {
                event = events.try_next() => event,
                () = tokio::time::sleep_until(give_up) => {
                    silent.retain(|id, since| {
                        let patient = since.elapsed() < SILENCE;
                        if !patient {
                            open.remove(id);
                        }
                        patient
                    });
                    continue;
                }
            };
            match event {
                Ok(Some(watcher::Event::Apply(server) | watcher::Event::InitApply(server))) => {
                    board.show(&server);
                    let id = id(&server);
                    if is_settled(&server) {
                        open.remove(&id);
                        silent.remove(&id);
                    } else if is_working(&server) {
                        silent.remove(&id);
                    } else {
                        silent.entry(id).or_insert_with(Instant::now);
                    }
                }
                Ok(Some(watcher::Event::Delete(server))) => {
                    open.remove(&id(&server));
                    silent.remove(&id(&server));
                }
                Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "progress lost sight of the servers"),
            }
        }
    };
    // Whoever takes longer goes on in the background, and kubectl shows it.
    let _ = tokio::time::timeout(PATIENCE, follow).await;
    board.close();
    Ok(())
}

fn id(server: &McpServer) -> String {
    format!("{}/{}", server.namespace().unwrap_or_default(), server.name_any())
}

fn is_settled(server: &McpServer) -> bool {
    let Some(status) = &server.status else { return false };
    status.observed_generation == server.metadata.generation
        && matches!(status.phase, Some(Phase::Ready | Phase::Failed | Phase::Suspended))
}

/// Whether there is work under way that is worth waiting for.
fn is_working(server: &McpServer) -> bool {
    let reason = server.status.as_ref().and_then(McpServerStatus::headline).map(|c| c.reason.as_str());
    matches!(
        reason,
        None | Some("Starting" | "Updating" | "Pending" | "Pulling" | "Building" | "Installing" | "Stopping")
    )
}

/// Phase and reason in words.
fn line(server: &McpServer) -> (Option<Phase>, String) {
    let status = server.status.clone().unwrap_or_default();
    let text = status.headline().map_or_else(|| "accepted".to_owned(), |c| format!("{}: {}", c.reason, c.message));
    (status.phase, text.lines().next().unwrap_or_default().to_owned())
}

/// One line a server: live on a terminal, else a new line for each change.
struct Board {
    bars: Option<(MultiProgress, HashMap<String, ProgressBar>)>,
    last: HashMap<String, String>,
    width: usize,
}

impl Board {
    fn new(width: usize) -> Self {
        let bars = std::io::stderr().is_terminal().then(|| (MultiProgress::new(), HashMap::new()));
        Self { bars, last: HashMap::new(), width }
    }

    fn show(&mut self, server: &McpServer) {
        let (phase, text) = line(server);
        let name = server.name_any();
        if self.last.insert(id(server), text.clone()).as_ref() == Some(&text) {
            return;
        }
        let width = self.width;
        let Some((all, bars)) = &mut self.bars else {
            complain!("{name:<width$}  {text}");
            return;
        };
        let bar = bars.entry(id(server)).or_insert_with(|| {
            let bar = all.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}") {
                bar.set_style(style.tick_strings(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏", " "]));
            }
            bar.set_prefix(format!("{name:<width$}"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        match phase {
            Some(Phase::Ready) => bar.finish_with_message(format!("✓ {text}")),
            Some(Phase::Failed) => bar.abandon_with_message(format!("✗ {text}")),
            _ => bar.set_message(text),
        }
    }

    fn close(&self) {
        for bar in self.bars.iter().flat_map(|(_, bars)| bars.values()).filter(|b| !b.is_finished()) {
            bar.abandon();
        }
    }
}
