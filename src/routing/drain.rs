//! Where work goes that began before: it finishes where it is, or it ends in a way that its client
//! understands. It never changes sides unnoticed.
//!
//! A legacy client holds a session that belongs to the instance which initialised it. A client of
//! 2026-07-28 holds no session, but may hold state that a revision issued: `requestState`, task
//! ids, a listen stream.

use super::cohort::Side;

/// What ties a request to the revision that served an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bond {
    /// Nothing.
    None,
    /// A session of Streamable HTTP (2025-03-26 to 2025-11-25), by `Mcp-Session-Id`.
    Session(Side),
    /// A connection of HTTP+SSE (2024-11-05), or of a client on standard streams.
    Connection(Side),
    /// State that a revision issued and the request brings back: `requestState`, a task id.
    State(Side),
    /// An open stream of `subscriptions/listen`.
    Listen(Side),
}

impl Bond {
    /// The side that it is tied to.
    #[must_use]
    pub const fn side(self) -> Option<Side> {
        match self {
            Self::None => None,
            Self::Session(side) | Self::Connection(side) | Self::State(side) | Self::Listen(side) => Some(side),
        }
    }
}

/// What a gateway does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Send it to this side.
    Serve(Side),
    /// Answer in a way that makes the client begin again.
    End(Goodbye),
}

/// How a bond ends, in the words of its protocol era.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// 404: the session is over, and the client must initialise again.
    SessionNotFound,
    /// Close the connection: the client connects and initialises again.
    CloseConnection,
    /// A JSON-RPC error that says the state is no longer valid: the client asks anew.
    StateExpired,
    /// End the response stream: the client listens again.
    EndStream,
}

/// How far a side has been left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leaving {
    /// It takes new work.
    #[default]
    No,
    /// It takes no new work; what is bound to it goes on.
    Draining,
    /// Its time is over.
    Gone,
}

/// Where a request goes. `wished` is the side of its principal, `leaving` and `left` say which side
/// is being left, if any, and how far.
#[must_use]
pub fn place(wished: Side, bond: Bond, leaving: Leaving, left: Side) -> Placement {
    let free = if leaving != Leaving::No && wished == left { other(left) } else { wished };
    match bond.side() {
        None => Placement::Serve(free),
        Some(side) if side == left && leaving == Leaving::Gone => Placement::End(match bond {
            Bond::Connection(_) => Goodbye::CloseConnection,
            Bond::State(_) => Goodbye::StateExpired,
            Bond::Listen(_) => Goodbye::EndStream,
            Bond::Session(_) | Bond::None => Goodbye::SessionNotFound,
        }),
        Some(side) => Placement::Serve(side),
    }
}

/// What happens to calls in flight and open streams of a side that is left.
#[must_use]
pub const fn may_finish(leaving: Leaving) -> bool {
    !matches!(leaving, Leaving::Gone)
}

const fn other(side: Side) -> Side {
    match side {
        Side::Stable => Side::Candidate,
        Side::Candidate => Side::Stable,
    }
}

#[cfg(test)]
mod tests {
    use super::{Side::*, *};

    const BONDS: [fn(Side) -> Bond; 4] = [Bond::Session, Bond::Connection, Bond::State, Bond::Listen];

    #[test]
    fn what_began_on_a_side_stays_there() {
        for bond in BONDS {
            for side in [Stable, Candidate] {
                for wished in [Stable, Candidate] {
                    assert_eq!(place(wished, bond(side), Leaving::No, Candidate), Placement::Serve(side));
                }
            }
        }
    }

    #[test]
    fn new_work_leaves_at_once_and_old_work_finishes() {
        assert_eq!(place(Candidate, Bond::None, Leaving::Draining, Candidate), Placement::Serve(Stable));
        assert_eq!(place(Stable, Bond::None, Leaving::Draining, Stable), Placement::Serve(Candidate));
        for bond in BONDS {
            assert_eq!(place(Candidate, bond(Candidate), Leaving::Draining, Candidate), Placement::Serve(Candidate));
        }
        assert!(may_finish(Leaving::Draining) && !may_finish(Leaving::Gone));
    }

    #[test]
    fn nothing_crosses_silently() {
        let goodbyes = [Goodbye::SessionNotFound, Goodbye::CloseConnection, Goodbye::StateExpired, Goodbye::EndStream];
        for (bond, goodbye) in BONDS.into_iter().zip(goodbyes) {
            for wished in [Stable, Candidate] {
                assert_eq!(place(wished, bond(Candidate), Leaving::Gone, Candidate), Placement::End(goodbye));
                assert_eq!(place(wished, bond(Stable), Leaving::Gone, Candidate), Placement::Serve(Stable));
            }
        }
    }
}
