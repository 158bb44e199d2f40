//! Where servers are in their lives, as metrics.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::Counter, gauge::ConstGauge},
    registry::Registry,
};

use crate::{lifecycle::Assessment, names::ServerKey};

/// State and score of each server. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Lives {
    known: Arc<Mutex<BTreeMap<ServerKey, Assessment>>>,
    rounds: Counter,
}

impl Lives {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
        let help = "Times that the gateways were asked how much servers are used";
        registry.register("perch_usage_rounds", help, self.rounds.clone());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServerKey, Assessment>> {
        self.known.lock().expect("nobody panics while holding the lives")
    }

    /// The gateways were asked once more.
    pub(super) fn round(&self) {
        self.rounds.inc();
    }

    /// What is known of a server now.
    pub(super) fn set(&self, server: ServerKey, assessment: Assessment) {
        self.lock().insert(server, assessment);
    }

    /// Forgets a server.
    pub(super) fn forget(&self, server: &ServerKey) {
        self.lock().remove(server);
    }

    /// Forgets all: another controller tells of them from now on.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

impl Collector for Lives {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let lives = self.lock();
        let one = ConstGauge::new(1_i64);
        let help = "1 for the state of its life that each server is in";
        let mut family = encoder.encode_descriptor("perch_server_lifecycle_state", help, None, one.metric_type())?;
        for (server, life) in lives.iter() {
            let server = server.to_string();
            one.encode(family.encode_family(&[("server", server.as_str()), ("state", life.state.as_str())])?)?;
        }
        let help = "How safe each server is by the policies of its level, from 0 to 100";
        let mut family = encoder.encode_descriptor("perch_server_security_score", help, None, one.metric_type())?;
        for (server, score) in lives.iter().filter_map(|(server, life)| Some((server, life.score?))) {
            let server = server.to_string();
            ConstGauge::new(i64::from(score)).encode(family.encode_family(&[("server", server.as_str())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;

    #[test]
    fn each_server_has_one_state_until_it_goes() {
        let (lives, mut registry) = (Lives::default(), Registry::default());
        lives.register(&mut registry);
        let key = |name: &str| ServerKey::new("n", name);
        let life = |state, score| Assessment { state, score, recommendations: Vec::new() };
        lives.set(key("a"), life(State::New, None));
        lives.set(key("a"), life(State::Active, Some(72)));
        lives.set(key("b"), life(State::Idle, None));
        lives.set(key("c"), life(State::Idle, Some(1)));
        lives.forget(&key("c"));
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text.lines().filter(|line| line.starts_with("perch_server")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            text(),
            [
                "perch_server_lifecycle_state{server=\"n/a\",state=\"Active\"} 1",
                "perch_server_lifecycle_state{server=\"n/b\",state=\"Idle\"} 1",
                "perch_server_security_score{server=\"n/a\"} 72",
            ]
        );
        lives.clear();
        assert!(text().is_empty());
    }
}
