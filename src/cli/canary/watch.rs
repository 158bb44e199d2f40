//! `perch canary watch`.

use std::{io::Write, time::Duration};

use console::Term;
use futures::TryStreamExt;
use jiff::Timestamp;
use kube::{
    ResourceExt,
    runtime::{WatchStreamExt, watcher::watch_object},
};

use super::{args::Watch, refused, releases, screen};
use crate::{
    api::canary_release::{CanaryRelease, Phase},
    cli::exit::Failure,
};

/// How long a release that has not begun may take to, before `--until-done` takes it for done.
const BEGIN: Duration = Duration::from_secs(15);

/// Shows a release at each change: on a terminal as a screen, else as a line.
pub async fn run(args: Watch) -> Result<(), Failure> {
    let api = releases(&args.place).await?;
    // A name that is mistyped is told at once.
    let first = api.get(&args.name).await.map_err(|error| refused(&error))?;
    let mut view = View::new();
    view.show(&first);
    let begun = tokio::time::Instant::now();
    let mut moved = !is_at_rest(&first);
    let changes = watch_object(api, &args.name).default_backoff();
    futures::pin_mut!(changes);
    loop {
        // Without --until-done there is no end, and the time of it never comes.
        let give_up = if args.until_done && !moved { begun + BEGIN } else { begun + Duration::from_secs(1 << 32) };
        let change = tokio::select! {
            change = changes.try_next() => change,
            () = tokio::time::sleep_until(give_up) => return end(view.last.as_ref()),
        };
        match change {
            Ok(Some(Some(release))) => {
                view.show(&release);
                moved |= !is_at_rest(&release);
                if args.until_done && moved && is_at_rest(&release) {
                    return end(Some(&release));
                }
                view.last = Some(release);
            }
            Ok(Some(None)) => return Err(Failure::failed(format!("{} was deleted", args.name))),
            Ok(None) => return Ok(()),
            Err(error) => tracing::debug!(%error, "the release is out of sight for a moment"),
        }
    }
}

fn is_at_rest(release: &CanaryRelease) -> bool {
    release.status.as_ref().is_none_or(|status| status.phase.is_at_rest())
}

fn end(release: Option<&CanaryRelease>) -> Result<(), Failure> {
    let Some((name, status)) = release.and_then(|r| Some((r.name_any(), r.status.as_ref()?))) else { return Ok(()) };
    match status.phase {
        Phase::RolledBack | Phase::Failed => Err(Failure::failed(format!("{name}: {}", status.message))),
        _ => Ok(()),
    }
}

/// Where it is shown.
struct View {
    term: Option<Term>,
    drawn: bool,
    said: String,
    last: Option<CanaryRelease>,
}

impl View {
    fn new() -> Self {
        let term = Term::stdout();
        Self { term: term.is_term().then_some(term), drawn: false, said: String::new(), last: None }
    }

    fn show(&mut self, release: &CanaryRelease) {
        let now = Timestamp::now();
        if let Some(term) = &self.term {
            // Whoever looked may be gone; then there is nobody to tell.
            let _ = draw(term, &screen::screen(release, now), !self.drawn);
            self.drawn = true;
            return;
        }
        let line = screen::line(release);
        if line != self.said {
            say!("{}  {line}", now.strftime("%Y-%m-%dT%H:%M:%SZ"));
            let _ = std::io::stdout().flush();
            self.said = line;
        }
    }
}

/// Draws over what was there, so that nothing flickers. What does not fit is cut off.
fn draw(term: &Term, screen: &str, first: bool) -> std::io::Result<()> {
    // Not every terminal knows its size.
    let (height, width) = term.size_checked().filter(|(h, w)| *h > 1 && *w > 1).unwrap_or((50, 200));
    if first {
        term.clear_screen()?;
    }
    term.move_cursor_to(0, 0)?;
    for line in screen.lines().take(usize::from(height).saturating_sub(1)) {
        let line = console::truncate_str(line, usize::from(width), "…");
        term.write_str(&format!("{line}\x1b[K\n"))?;
    }
    term.clear_to_end_of_screen()?;
    term.flush()
}
