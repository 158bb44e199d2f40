//! How an operation went, in the classes that metrics, the audit log and releases count by.

use http::StatusCode;

use super::scan::Answer;
use crate::gateway::reply::{INVALID_PARAMS, NO_METHOD, SERVER_FAILED};

/// How an operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was answered with a result.
    Ok,
    /// The server needs more from the client first. That is no error.
    InputRequired,
    /// The tool says that it failed: `isError: true`.
    ToolError,
    /// JSON-RPC internal error, -32603.
    InternalError,
    /// Invalid parameters or an unknown tool or method, -32602 and -32601.
    InvalidParams,
    /// Any other JSON-RPC error, or an HTTP status of 400 to 499.
    Rejected,
    /// The server comes to its end, and no longer serves this user.
    Decommissioned,
    /// The server answered with an HTTP status of 500 or above.
    ServerError,
    /// There was no connection, or it broke, or no instance runs.
    Unavailable,
    /// No answer came in time.
    Timeout,
    /// The client gave it up, or is to take up its answer elsewhere: nobody knows how it went.
    Cancelled,
}

impl Outcome {
    /// Every outcome, in the order of [`Outcome::index`].
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::InputRequired,
        Self::ToolError,
        Self::InternalError,
        Self::InvalidParams,
        Self::Rejected,
        Self::Decommissioned,
        Self::ServerError,
        Self::Unavailable,
        Self::Timeout,
        Self::Cancelled,
    ];

    /// Its place in [`Outcome::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The outcome in labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::InputRequired => "input_required",
            Self::ToolError => "tool_error",
            Self::InternalError => "internal_error",
            Self::InvalidParams => "invalid_params",
            Self::Rejected => "rejected",
            Self::Decommissioned => "decommissioned",
            Self::ServerError => "server_error",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it says anything about the server.
    pub const fn counts(self) -> bool {
        !matches!(self, Self::Cancelled)
    }

    /// Whether it is the server's failure.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::ToolError | Self::InternalError | Self::ServerError | Self::Unavailable | Self::Timeout)
    }

    /// Whether the server could not be reached, or never answered.
    pub const fn is_unavailable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Timeout)
    }

    /// Whether the server did not take the call as it was.
    pub const fn is_schema_error(self) -> bool {
        matches!(self, Self::InvalidParams)
    }

    /// The outcome of a request that the gateway answered itself with this status and code.
    pub fn of_failure(status: StatusCode, code: i32) -> Self {
        match (status, code) {
            (StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY, _) => Self::Unavailable,
            (StatusCode::GATEWAY_TIMEOUT, _) => Self::Timeout,
            (status, _) if status.is_server_error() => Self::ServerError,
            (StatusCode::GONE, _) => Self::Decommissioned,
            (_, SERVER_FAILED) => Self::InternalError,
            // With status 200 it is the gateway's own word, not the server's.
            (status, INVALID_PARAMS | NO_METHOD) if status.is_client_error() => Self::InvalidParams,
            _ => Self::Rejected,
        }
    }

    /// The outcome of a request whose answer passed, as far as it did.
    pub fn of_answer(status: StatusCode, answer: Option<&Answer>) -> Self {
        match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => return Self::Unavailable,
            StatusCode::GATEWAY_TIMEOUT => return Self::Timeout,
            status if status.is_server_error() => return Self::ServerError,
            _ => {}
        }
        let Some(answer) = answer else {
            return if status.is_success() { Self::Unavailable } else { Self::Rejected };
        };
        match answer.error {
            Some(code) if code == i64::from(SERVER_FAILED) => Self::InternalError,
            Some(code) if code == i64::from(INVALID_PARAMS) || code == i64::from(NO_METHOD) => Self::InvalidParams,
            _ if answer.failed => Self::Rejected,
            _ if answer.is_error => Self::ToolError,
            _ if answer.input_required => Self::InputRequired,
            _ => Self::Ok,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(error: Option<i64>, is_error: bool) -> Answer {
        Answer { error, failed: error.is_some(), is_error, ..Answer::default() }
    }

    #[test]
    fn each_outcome_has_its_place() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), index);
        }
    }

    #[test]
    fn answers_are_judged() {
        let of = |status, answer: Answer| Outcome::of_answer(StatusCode::from_u16(status).unwrap(), Some(&answer));
        assert_eq!(of(200, answer(None, false)), Outcome::Ok);
        assert_eq!(of(200, answer(None, true)), Outcome::ToolError);
        assert_eq!(of(200, answer(Some(-32603), false)), Outcome::InternalError);
        assert_eq!(of(400, answer(Some(-32602), false)), Outcome::InvalidParams);
        assert_eq!(of(404, answer(Some(-32601), false)), Outcome::InvalidParams);
        assert_eq!(of(200, answer(Some(-32002), false)), Outcome::Rejected);
        assert_eq!(of(500, answer(None, false)), Outcome::ServerError);
        assert_eq!(of(503, answer(Some(-32000), false)), Outcome::Unavailable);
        assert_eq!(of(200, Answer { input_required: true, ..Answer::default() }), Outcome::InputRequired);
        let silent = |status| Outcome::of_answer(StatusCode::from_u16(status).unwrap(), None);
        assert_eq!(
            [silent(200), silent(404), silent(504)],
            [Outcome::Unavailable, Outcome::Rejected, Outcome::Timeout]
        );
    }

    #[test]
    fn whom_a_server_leaves_behind_is_counted_apart() {
        assert_eq!(Outcome::of_failure(StatusCode::GONE, -32000), Outcome::Decommissioned);
        assert_eq!(Outcome::of_answer(StatusCode::GONE, None), Outcome::Rejected, "a server's own word is not Perch's");
        assert!(Outcome::Decommissioned.counts() && !Outcome::Decommissioned.is_failure());
    }

    #[test]
    fn only_failures_of_the_server_are_failures() {
        use Outcome::*;
        let failures: Vec<Outcome> = Outcome::ALL.into_iter().filter(|o| o.is_failure()).collect();
        assert_eq!(failures, [ToolError, InternalError, ServerError, Unavailable, Timeout]);
        assert!(!Cancelled.counts() && InputRequired.counts() && InvalidParams.is_schema_error());
    }
}
