//! Names that travel through all layers.

use std::fmt;

/// Ends the name of a key of a candidate.
const CANDIDATE: &str = "_candidate";
/// Begins the name of a key of a toolbox.
const TOOLBOXES: &str = "toolboxes/";

/// A namespaced server: the key of everything that is kept per `McpServer`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerKey {
    /// Namespace of the `McpServer`.
    pub namespace: String,
    /// Name of the `McpServer`.
    pub name: String,
}

impl ServerKey {
    /// Joins a namespace and a name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key under which a backend runs the candidate of this server, beside what runs under the
    /// server's own key. No `McpServer` can have its name: no object's name has an underscore.
    #[must_use]
    pub fn candidate(&self) -> Self {
        Self::new(self.namespace.clone(), format!("{}{CANDIDATE}", self.declared().name))
    }

    /// The key of a toolbox, which is none of any server: no object's name has a slash. Its text is
    /// the path of the toolbox.
    #[must_use]
    pub fn toolbox(namespace: &str, name: &str) -> Self {
        Self::new(namespace, format!("{TOOLBOXES}{name}"))
    }

    /// The name of the toolbox whose key it is.
    #[must_use]
    pub fn as_toolbox(&self) -> Option<&str> {
        self.name.strip_prefix(TOOLBOXES)
    }

    /// Whether it is the key of a candidate.
    #[must_use]
    pub fn is_candidate(&self) -> bool {
        self.name.ends_with(CANDIDATE)
    }

    /// The key of the `McpServer` that this belongs to.
    #[must_use]
    pub fn declared(&self) -> Self {
        let name = self.name.strip_suffix(CANDIDATE).unwrap_or(&self.name);
        Self::new(self.namespace.clone(), name)
    }
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Name of a revision of a server, `<server>-<hash>`: equal names run the same thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub String);

impl Revision {
    /// The revision's name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolbox_is_no_server() {
        let toolbox = ServerKey::toolbox("default", "dev");
        assert_eq!((toolbox.to_string().as_str(), toolbox.as_toolbox()), ("default/toolboxes/dev", Some("dev")));
        assert_eq!(ServerKey::new("default", "toolboxes").as_toolbox(), None);
    }

    #[test]
    fn a_candidate_leads_back_to_its_server() {
        let server = ServerKey::new("default", "everything");
        let candidate = server.candidate();
        assert!(candidate.is_candidate() && !server.is_candidate() && candidate != server);
        assert_eq!(
            (candidate.declared(), candidate.candidate(), server.declared()),
            (server.clone(), candidate, server)
        );
    }
}
