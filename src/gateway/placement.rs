//! Which instances may take a request: those of its session, of the revision that a release gives
//! its user, or of the revision that is asked for by name.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;

use super::{
    handler::{Call, Gateway},
    listen::Peer,
    observe::{
        Counted,
        releases::{InFlight, RevisionCounters},
    },
    reply::{self, Failure},
    session::{Groups, Place},
};
use crate::{
    names::{Revision, ServerKey},
    routing::{
        Route, Seat, Side, Split, Subject,
        drain::{Bond, Goodbye, Placement},
    },
    runtime::Endpoint,
};

/// Time between two looks when no change was told.
const LOOK: Duration = Duration::from_secs(1);

/// Who sends a call, as far as it is known. A session that a request names without having it says
/// nothing.
fn subject<'a>(call: &'a Call, session: Option<&'a str>) -> Subject<'a> {
    let extensions = &call.parts.extensions;
    Subject {
        user: (!call.principal.0.is_empty()).then_some(&*call.principal.0),
        groups: extensions.get::<Groups>().map(|g| &*g.0).unwrap_or_default(),
        session,
        address: extensions.get::<Peer>().map(|peer: &Peer| SocketAddr::ip(&peer.0)),
    }
}

fn gone(goodbye: Goodbye) -> Failure {
    match goodbye {
        Goodbye::StateExpired => Failure::new(
            StatusCode::OK,
            reply::INVALID_PARAMS,
            "the request brings back state of a revision that is gone: send the call again without it",
        ),
        Goodbye::SessionNotFound | Goodbye::CloseConnection | Goodbye::EndStream => Failure::no_session(),
    }
}

impl Gateway {
    /// The route of a call, as it is now.
    pub(super) fn route_now(&self, call: &Call) -> Arc<Route> {
        self.table.load().find(&call.route.server).cloned().unwrap_or_else(|| Arc::clone(&call.route))
    }

    /// The instances that requests for a server may go to at all, those that run under its own key
    /// first, and how many these are.
    fn pool(&self, server: &ServerKey, split: Option<&Split>) -> (Vec<Endpoint>, usize) {
        let mut all = self.instances.endpoints(server);
        let own = all.len();
        if let Some(split) = split {
            // Under the candidate's key may run what became the stable revision, until it runs
            // under the server's own.
            let runs = |e: &Endpoint| e.revision == split.stable || Some(&e.revision) == split.running_candidate();
            all.extend(self.instances.endpoints(&server.candidate()).into_iter().filter(runs));
        }
        (all, own)
    }

    /// Of instances of one revision those that will stay: under the candidate's key while the
    /// server's own are not ready yet, then the server's own, so that nobody is with the others when
    /// they end.
    fn settled(&self, route: &Route, found: Vec<Endpoint>) -> Vec<Endpoint> {
        let own = self.instances.endpoints(&route.server);
        let (mine, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|e| own.contains(e));
        let waits = route.not_ready.is_some() && !others.is_empty();
        if mine.is_empty() || waits { others } else { mine }
    }

    /// Whose side a person is on now, with the counters of that side; none while no release divides
    /// the server. `@revision` in the path says that it is about that one.
    pub(super) fn side_of(&self, call: &Call) -> Option<(Revision, Seat, Arc<RevisionCounters>)> {
        let route = self.route_now(call);
        let split = route.split.as_deref()?;
        let seat = split.seat(&subject(call, None));
        let side = match &call.revision {
            Some(revision) => split.side_of(revision.as_str())?,
            None => match split.place(seat.side, Bond::None) {
                Placement::Serve(side) => side,
                Placement::End(_) => Side::Stable,
            },
        };
        let release = self.observer.as_ref()?.releases.get(&route.server)?;
        Some((split.revision(side).clone(), seat, Arc::clone(release.counters(side)?)))
    }

    /// Tells a call's trail that it goes to a revision.
    fn serves(&self, call: &Call, split: Option<&Split>, revision: &Revision, session: Option<&str>) {
        call.trail.serve(revision, || {
            let (observer, split) = (self.observer.as_ref()?, split.filter(|_| call.revision.is_none())?);
            let side = split.side_of(revision.as_str())?;
            let release = observer.releases.get(&call.route.server)?;
            Some(Counted {
                in_flight: InFlight::new(Arc::clone(release.counters(side)?)),
                seat: split.seat(&subject(call, session)),
                over: (side == Side::Candidate).then(|| release.over().clone()),
            })
        });
    }

    /// Looks until something is found, for as long as an instance may take to start.
    async fn wait<T>(&self, call: &Call, mut look: impl FnMut() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
        if let Some(found) = look()? {
            return Ok(found);
        }
        let mut changes = self.instances.changes();
        let server = &call.route.server;
        let ordinary = tokio::time::Instant::now() + self.config.start_timeout;
        let found = async {
            loop {
                if let Some(found) = look()? {
                    return Ok(found);
                }
                let has_failed = || self.table.load().find(server).is_some_and(|route| route.has_failed);
                if tokio::time::Instant::now() >= ordinary && has_failed() {
                    return Err(self.not_ready(server));
                }
                // A lag means that something changed; a closed channel is looked at again in time.
                let _ = tokio::time::timeout(LOOK, changes.recv()).await;
            }
        };
        tokio::select! {
            found = found => found,
            () = tokio::time::sleep(call.patience) => Err(self.not_ready(server)),
            () = self.shutdown.cancelled() => Err(Failure::restarting("the gateway is shutting down")),
        }
    }

    /// The instances that may take a call that belongs to no session yet, waited for while the
    /// server starts. `session` is the number of a session that begins.
    pub(super) async fn eligible(&self, call: &Call, session: Option<u64>) -> Result<Vec<Endpoint>, Failure> {
        if let Some(revision) = &call.revision {
            let found = self.pinned(call, revision)?;
            // Whoever asks for a revision asks how the server's own instances are, if it has any.
            let own = self.instances.endpoints(&call.route.server);
            let mine: Vec<_> = found.iter().filter(|e| own.contains(e)).cloned().collect();
            return Ok(if mine.is_empty() { found } else { mine });
        }
        let number = session.map(|number| number.to_string());
        let state = self.observer.as_ref().and_then(|observer| observer.states.bond(call));
        self.wait(call, || self.look(call, number.as_deref(), state.as_ref())).await
    }

    /// The revision that a call would go to now; none while no instance is there.
    pub(super) fn revision_now(&self, call: &Call) -> Option<Revision> {
        self.look(call, None, None).ok()??.into_iter().next().map(|endpoint| endpoint.revision)
    }

    fn look(
        &self,
        call: &Call,
        session: Option<&str>,
        state: Option<&Revision>,
    ) -> Result<Option<Vec<Endpoint>>, Failure> {
        let route = self.route_now(call);
        if route.upstream != call.route.upstream {
            return Err(Failure::moved(&route.server));
        }
        let split = route.split.as_deref();
        let (mut all, own) = self.pool(&route.server, split);
        let of = |all: &[Endpoint], revision: &Revision| -> Vec<Endpoint> {
            all.iter().filter(|e| e.revision == *revision).cloned().collect()
        };
        let Some(split) = split else {
            if let Some(state) = state {
                let bound = of(&all, state);
                return if bound.is_empty() { Err(gone(Goodbye::StateExpired)) } else { Ok(Some(bound)) };
            }
            return Ok(Some(all).filter(|all| !all.is_empty()));
        };
        let bond = match state.map(|state| (state, split.side_of(state.as_str()))) {
            None => Bond::None,
            Some((_, Some(side))) => Bond::State(side),
            Some((state, None)) => {
                let bound = of(&all, state);
                return if bound.is_empty() { Err(gone(Goodbye::StateExpired)) } else { Ok(Some(bound)) };
            }
        };
        let side = match split.place(split.seat(&subject(call, session)).side, bond) {
            Placement::Serve(side) => side,
            Placement::End(goodbye) => return Err(gone(goodbye)),
        };
        let wished = split.revision(side);
        self.serves(call, Some(split), wished, session);
        let found = of(&all, wished);
        if !found.is_empty() {
            return Ok(Some(self.settled(&route, found)));
        }
        if bond != Bond::None {
            return Ok(None);
        }
        // New work need not wait for a candidate that is not there. What the server runs under its
        // own key is next to the stable revision, and the candidate never takes its place.
        let stable = of(&all, &split.stable);
        let next = if stable.is_empty() {
            all.truncate(own);
            all.retain(|e| Some(&e.revision) != split.candidate.as_ref());
            all
        } else {
            stable
        };
        if let Some(first) = next.first() {
            self.serves(call, Some(split), &first.revision, session);
        }
        Ok(Some(next).filter(|next| !next.is_empty()))
    }

    /// The instances of a revision that is asked for by name.
    fn pinned(&self, call: &Call, revision: &Revision) -> Result<Vec<Endpoint>, Failure> {
        let server = &call.route.server;
        let mut all = self.instances.endpoints(server);
        all.extend(self.instances.endpoints(&server.candidate()));
        let mut running: Vec<String> = all.iter().map(|e| e.revision.0.clone()).collect();
        all.retain(|e| e.revision == *revision);
        if all.is_empty() {
            running.sort();
            running.dedup();
            let running = if running.is_empty() { "nothing".to_owned() } else { running.join(" and ") };
            return Err(Failure::unavailable(format!(
                "revision {revision} of server {server} does not run: {running} does"
            )));
        }
        self.serves(call, None, revision, None);
        Ok(all)
    }

    /// The instances of the revision that a session belongs to.
    pub(super) async fn bound(&self, call: &Call, revision: &str) -> Result<Vec<Endpoint>, Failure> {
        let found = self.all_bound(call, revision).await?;
        Ok(self.settled(&self.route_now(call), found))
    }

    async fn all_bound(&self, call: &Call, revision: &str) -> Result<Vec<Endpoint>, Failure> {
        let mut found = if let Some(asked) = &call.revision {
            self.pinned(call, asked)?
        } else {
            let look = || {
                let route = self.route_now(call);
                let split = route.split.as_deref();
                if let Some(split) = split
                    && let Some(side) = split.side_of(revision)
                    && let Placement::End(goodbye) = split.place(side, Bond::Session(side))
                {
                    return Err(gone(goodbye));
                }
                let (all, _) = self.pool(&route.server, split);
                if all.is_empty() {
                    return Ok(None);
                }
                if all.iter().any(|e| e.revision.as_str() == revision) {
                    self.serves(call, split, &Revision(revision.to_owned()), call.session_id());
                }
                Ok(Some(all))
            };
            self.wait(call, look).await?
        };
        found.retain(|e| e.revision.as_str() == revision);
        if found.is_empty() { Err(Failure::no_session()) } else { Ok(found) }
    }

    /// The instance that keeps a session.
    pub(super) async fn keeper(&self, call: &Call, place: &Place) -> Result<Endpoint, Failure> {
        let endpoints = self.all_bound(call, &place.revision).await?;
        endpoints.into_iter().find(|e| e.instance.0 == place.instance).ok_or_else(Failure::no_session)
    }

    /// Checks that the revision of a session with a process of its own still has its time.
    pub(super) fn stays(&self, call: &Call, revision: &Revision) -> Result<(), Failure> {
        let route = self.route_now(call);
        let split = route.split.as_deref();
        if let Some(split) = split
            && let Some(side) = split.side_of(revision.as_str())
            && let Placement::End(goodbye) = split.place(side, Bond::Session(side))
        {
            return Err(gone(goodbye));
        }
        self.serves(call, split, revision, call.session_id());
        Ok(())
    }

    /// A call goes on where its state is: at this revision.
    pub(super) fn resumes(&self, call: &Call, revision: &Revision) {
        let route = self.route_now(call);
        self.serves(call, route.split.as_deref(), revision, None);
    }

    /// The key under which the instances of a revision run.
    pub(super) fn key_of(&self, server: &ServerKey, revision: &Revision) -> ServerKey {
        let runs = |key: &ServerKey| self.instances.endpoints(key).iter().any(|e| e.revision == *revision);
        let candidate = server.candidate();
        if !runs(server) && runs(&candidate) { candidate } else { server.clone() }
    }
}
