//! What differs on purpose.

/// A difference between the real server and the embedded one that is meant to be.
pub struct Difference {
    /// Name of the case.
    pub case: &'static str,
    /// Number of the step and JSON pointer into its outcome; all below it may differ.
    pub at: &'static str,
    /// Why.
    pub reason: &'static str,
}

const fn on_purpose(case: &'static str, at: &'static str, reason: &'static str) -> Difference {
    Difference { case, at, reason }
}

const AT_ONCE: &str = "what the garbage collector does some time later is part of the same transaction here: the object is gone when the answer comes";
const ETCD: &str = "the real message tells how etcd stores the object; there is no etcd here";
const GO_WORDS: &str = "the real message is that of Go's decoder for one broken text; ours is that of Rust's";
const LOST_OWNERS: &str = "the real server forgets who owns anything when a part that it ignores is of another type; nothing is forgotten here";
const PRUNED_ELSEWHERE: &str = "the real server prunes by the schema of a version that does not exist before it refuses it; it is refused first here";
const SCALE_TIME: &str =
    "the real server loses the time, and with a JSON patch the owner, of a change through scale; both are kept here";
const OLD_FORM: &str = "a form of Kubernetes 1.14; no client that is supported asks for it";
const OTHER_DOCS: &str = "the description is that of another release of Kubernetes, the one that k8s-openapi has";
const TOO_LARGE: &str =
    "too large an object is the client's mistake, so 413 with both sizes says more than 500 without a reason";

/// All of them. One that does not occur fails its case.
pub const DIFFERENCES: &[Difference] = &[
    on_purpose("access-reviews", "0/body/metadata", "a review is an answer, not an object that somebody could own"),
    on_purpose("access-reviews", "0/body/status/reason", "it tells why all is allowed"),
    on_purpose("addresses-that-are-not-there", "16/body", "an empty 404 tells nobody anything"),
    on_purpose("addresses-that-are-not-there", "16/type", "an empty 404 tells nobody anything"),
    on_purpose("apply-conflicts", "10/body/metadata/managedFields/3/time", SCALE_TIME),
    on_purpose("apply-errors", "23/body/message", GO_WORDS),
    on_purpose("apply-from-yaml", "1/body/message", GO_WORDS),
    on_purpose("create-malformed", "3/body/message", GO_WORDS),
    on_purpose("create-of-the-wrong-kind", "2/warnings", PRUNED_ELSEWHERE),
    on_purpose(
        "default-of-a-status",
        "5/body/metadata/managedFields/2/time",
        "the real server notes the time of an apply that changes nothing but the status, which it then ignores",
    ),
    on_purpose(
        "default-of-a-status-is-kept",
        "1/body/metadata/resourceVersion",
        "the real server keeps what the schema gives a status by default from the second write on, so that even one that changes nothing is a new version; here it is kept from the creation on",
    ),
    on_purpose(
        "discovery-of-schemas",
        "0/type",
        "the real server sends JSON as plain text here, for nobody set the type",
    ),
    on_purpose("field-validation", "2/warnings", GO_WORDS),
    on_purpose("field-validation", "3/warnings", GO_WORDS),
    on_purpose("field-validation", "10/warnings", GO_WORDS),
    on_purpose("field-validation", "11/warnings", GO_WORDS),
    on_purpose("field-validation", "14/body/message", GO_WORDS),
    on_purpose("field-validation", "15/body/message", GO_WORDS),
    on_purpose(
        "forms-of-answers",
        "21",
        "JSON is of the type application/*, so it is sent for custom and for built-in kinds alike",
    ),
    on_purpose("health", "4/2", "no other release of Kubernetes is emulated, so none is named"),
    on_purpose("kubectl-discovery", "12/stdout", OTHER_DOCS),
    on_purpose("kubectl-discovery", "14/stdout", OTHER_DOCS),
    on_purpose("leases", "9/body/metadata/managedFields", "nobody owns a field that the server does not keep"),
    on_purpose("metadata-that-stays", "13/warnings", PRUNED_ELSEWHERE),
    on_purpose("orphan-finalizer-by-hand", "1/body", AT_ONCE),
    on_purpose("pages", "16/body/message", GO_WORDS),
    on_purpose("pages", "17/body/message", GO_WORDS),
    on_purpose("replace", "9/body/message", ETCD),
    on_purpose("replace-built-in", "6/body/message", ETCD),
    on_purpose("scale", "6/body/metadata/managedFields/0/time", SCALE_TIME),
    on_purpose("scale", "25/body/metadata/managedFields", SCALE_TIME),
    on_purpose("schema-other-members", "2/body/metadata/managedFields", LOST_OWNERS),
    on_purpose("secrets", "8/body/details/causes", GO_WORDS),
    on_purpose("secrets", "8/body/message", GO_WORDS),
    on_purpose("size", "1/body", TOO_LARGE),
    on_purpose("size", "1/status", TOO_LARGE),
    on_purpose("size", "7/body", TOO_LARGE),
    on_purpose("size", "7/status", TOO_LARGE),
    on_purpose("status-of-another-type-through-the-main-address", "0/body/metadata/managedFields", LOST_OWNERS),
    on_purpose("status-of-another-type-through-the-main-address", "1/body/metadata/managedFields", LOST_OWNERS),
    on_purpose("strategic-merge-patch", "12/body/details/causes", GO_WORDS),
    on_purpose("strategic-merge-patch", "12/body/message", GO_WORDS),
    on_purpose(
        "subresources-that-are-not-there",
        "5",
        "the real server ignores what comes after the name of a subresource; an address that is none is told so here",
    ),
    on_purpose("tables", "9/body", OLD_FORM),
    on_purpose("watch-from-a-version", "11", "the addresses below /watch/ are deprecated since Kubernetes 1.11"),
    on_purpose(
        "watch-versions-that-cannot-be",
        "3",
        "the real server waits for a version that it may come to know from etcd; here such a version is from another store, and a client that waits for it would wait for ever",
    ),
];
