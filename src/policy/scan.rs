//! What scanners found in an image: reports of Trivy (JSON, and `VulnerabilityReport` of its operator)
//! and SARIF 2.1.0 of any scanner, as the annotations that the rules read.

use jiff::Timestamp;
use serde_json::{Value, json};

/// Annotation: when the image was scanned.
const AT: &str = "policy.perch.dev/scanned-at";
/// Annotation: findings of critical severity.
const CRITICAL: &str = "policy.perch.dev/scan-critical";
/// Annotation: findings of high severity.
const HIGH: &str = "policy.perch.dev/scan-high";

/// From which `security-severity` on a finding is critical: CVSS calls it so.
const CRITICAL_SCORE: f64 = 9.0;
/// From which `security-severity` on a finding is high.
const HIGH_SCORE: f64 = 7.0;

/// Why a report is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Malformed(String),
    /// It is JSON of another kind.
    #[error("it is no report of Trivy (--format json), no VulnerabilityReport and no SARIF 2.1.0")]
    Unknown,
    /// It lacks something.
    #[error("it has no {0}: a report that was cut short says nothing")]
    Incomplete(&'static str),
}

/// What a scanner found in one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanReport {
    /// Names of the image, as the scanner was given it or found them; none where it names none.
    pub images: Vec<String>,
    /// When it was scanned, where the report says so.
    pub at: Option<Timestamp>,
    /// Findings of critical severity.
    pub critical: u64,
    /// Findings of high severity.
    pub high: u64,
}

impl ScanReport {
    /// Reads a report.
    ///
    /// # Errors
    /// When it is no report, or is not whole.
    pub fn read(text: &str) -> Result<Self, ScanError> {
        let report: Value = serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(text))
            .map_err(|error| ScanError::Malformed(error.to_string()))?;
        if report["runs"].is_array() && report["version"] == "2.1.0" {
            sarif(&report)
        } else if report["kind"] == "VulnerabilityReport" {
            operator(&report)
        } else if report["SchemaVersion"].is_number() && report["ArtifactName"].is_string() {
            trivy(&report)
        } else {
            Err(ScanError::Unknown)
        }
    }

    /// Whether it is about an image. One that is pinned must have been scanned by its digest, or by
    /// the same name.
    #[must_use]
    pub fn is_about(&self, image: &str) -> bool {
        let image = full_name(image);
        let (name, digest) = split(&image);
        self.images.iter().map(|known| full_name(known)).any(|known| {
            let (known_name, known_digest) = split(&known);
            match (digest, known_digest) {
                (Some(digest), Some(known_digest)) => digest == known_digest && untagged(name) == untagged(known_name),
                (None, None) => tagged(name) == tagged(known_name),
                _ => false,
            }
        })
    }

    /// Writes it into the annotations of an object, as a scan at `otherwise` where it has no time.
    pub fn annotate(&self, object: &mut Value, otherwise: Timestamp) {
        let at = self.at.unwrap_or(otherwise).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        if !object["metadata"]["annotations"].is_object() {
            object["metadata"]["annotations"] = json!({});
        }
        let annotations = &mut object["metadata"]["annotations"];
        annotations[AT] = at.into();
        annotations[CRITICAL] = self.critical.to_string().into();
        annotations[HIGH] = self.high.to_string().into();
    }
}

/// The image that an `McpServer` runs; none of what is no such server.
#[must_use]
pub fn image_of(object: &Value) -> Option<&str> {
    if object["kind"] != "McpServer" {
        return None;
    }
    let containers = object["spec"]["podTemplate"]["spec"]["containers"].as_array();
    let own = containers.into_iter().flatten().find(|c| c["name"] == "server").and_then(|c| c["image"].as_str());
    own.or_else(|| object["spec"]["image"].as_str())
}

fn full_name(image: &str) -> String {
    let image = image.strip_prefix("index.docker.io/").map_or_else(|| image.to_owned(), |i| format!("docker.io/{i}"));
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => image,
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    }
}

fn split(image: &str) -> (&str, Option<&str>) {
    image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)))
}

fn untagged(name: &str) -> &str {
    let last = name.rfind('/').map_or(0, |i| i + 1);
    name[last..].find(':').map_or(name, |colon| &name[..last + colon])
}

fn tagged(name: &str) -> String {
    if untagged(name) == name { format!("{name}:latest") } else { name.to_owned() }
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

fn names(lists: &[&Value]) -> Vec<String> {
    let all = lists.iter().flat_map(|list| match list {
        Value::Array(list) => list.iter().collect(),
        one => vec![*one],
    });
    let mut names: Vec<String> = all.filter_map(Value::as_str).filter(|n| !n.is_empty()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// Trivy leaves `Results` out where it found nothing to look into.
fn trivy(report: &Value) -> Result<ScanReport, ScanError> {
    let (mut critical, mut high) = (0, 0);
    let results = match &report["Results"] {
        Value::Null => &[],
        Value::Array(results) => results.as_slice(),
        _ => return Err(ScanError::Incomplete("list of Results")),
    };
    for result in results {
        for list in ["Vulnerabilities", "Secrets", "Misconfigurations"] {
            for finding in result[list].as_array().into_iter().flatten().filter(|f| f["Status"] != "PASS") {
                match finding["Severity"].as_str() {
                    Some("CRITICAL") => critical += 1,
                    Some("HIGH") => high += 1,
                    Some(_) => {}
                    None => return Err(ScanError::Incomplete("severity of a finding")),
                }
            }
        }
    }
    let metadata = &report["Metadata"];
    Ok(ScanReport {
        images: names(&[&report["ArtifactName"], &metadata["RepoTags"], &metadata["RepoDigests"]]),
        at: time(&report["CreatedAt"]),
        critical,
        high,
    })
}

fn operator(object: &Value) -> Result<ScanReport, ScanError> {
    let report = &object["report"];
    let count = |name: &str| report["summary"][name].as_u64().ok_or(ScanError::Incomplete("summary"));
    let artifact = &report["artifact"];
    let server = report["registry"]["server"].as_str().unwrap_or_default();
    let repository = artifact["repository"].as_str().ok_or(ScanError::Incomplete("artifact"))?;
    let name = if server.is_empty() { repository.to_owned() } else { format!("{server}/{repository}") };
    let with = |mark: &str, value: &Value| value.as_str().map(|v| format!("{name}{mark}{v}"));
    let images = [with(":", &artifact["tag"]), with("@", &artifact["digest"])];
    Ok(ScanReport {
        images: images.into_iter().flatten().collect(),
        at: time(&report["updateTimestamp"]),
        critical: count("criticalCount")?,
        high: count("highCount")?,
    })
}

/// What a finding without a score counts as follows from its level: an error is high.
fn sarif(report: &Value) -> Result<ScanReport, ScanError> {
    let mut scan = ScanReport { images: Vec::new(), at: None, critical: 0, high: 0 };
    let runs = report["runs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if runs.is_empty() {
        return Err(ScanError::Incomplete("run"));
    }
    for run in runs {
        let results = run["results"].as_array().ok_or(ScanError::Incomplete("list of results"))?;
        let extensions = run["tool"]["extensions"].as_array().into_iter().flatten();
        let rules: Vec<&Value> = std::iter::once(&run["tool"]["driver"])
            .chain(extensions)
            .flat_map(|tool| tool["rules"].as_array().into_iter().flatten())
            .collect();
        for result in results {
            let id = result["ruleId"].as_str().or_else(|| result["rule"]["id"].as_str());
            let index = result["ruleIndex"].as_u64().and_then(|i| usize::try_from(i).ok());
            let by_id = id.and_then(|id| rules.iter().find(|rule| rule["id"] == id));
            let rule = by_id.or_else(|| rules.get(index?)).copied().unwrap_or(&Value::Null);
            let score = [&result["properties"]["security-severity"], &rule["properties"]["security-severity"]];
            let score = score.into_iter().find_map(|s| s.as_f64().or_else(|| s.as_str()?.parse().ok()));
            let level = result["level"].as_str().or_else(|| rule["defaultConfiguration"]["level"].as_str());
            match score {
                Some(score) if score >= CRITICAL_SCORE => scan.critical += 1,
                Some(score) if score >= HIGH_SCORE => scan.high += 1,
                Some(_) => {}
                None => scan.high += u64::from(level == Some("error")),
            }
        }
        let properties = &run["properties"];
        scan.images.extend(names(&[&properties["imageName"], &properties["repoTags"], &properties["repoDigests"]]));
        let ends = run["invocations"].as_array().into_iter().flatten().filter_map(|i| time(&i["endTimeUtc"]));
        scan.at = ends.chain(scan.at).min();
    }
    Ok(scan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    #[test]
    fn trivy_is_read() {
        let report = json!({"SchemaVersion": 2, "CreatedAt": "2026-05-30T10:00:00.5Z", "ArtifactName": "alpine:3.15",
            "ArtifactType": "container_image",
            "Metadata": {"RepoTags": ["alpine:3.15"], "RepoDigests": [format!("alpine@{}", digest('a'))]},
            "Results": [{"Vulnerabilities": [{"Severity": "CRITICAL"}, {"Severity": "HIGH"}, {"Severity": "LOW"}]},
                {"Secrets": [{"Severity": "HIGH"}]}, {"Misconfigurations": [{"Severity": "HIGH", "Status": "PASS"}]}]});
        let scan = ScanReport::read(&report.to_string()).unwrap();
        assert_eq!((scan.critical, scan.high), (1, 2));
        assert_eq!(scan.at, "2026-05-30T10:00:00.5Z".parse().ok());
        for image in ["alpine:3.15", "docker.io/library/alpine:3.15", &format!("alpine:3.15@{}", digest('a'))] {
            assert!(scan.is_about(image), "{image}");
        }
        for image in ["alpine:3.16", "me/alpine:3.15", "alpine", &format!("alpine:3.15@{}", digest('b'))] {
            assert!(!scan.is_about(image), "{image}");
        }
        let nothing = json!({"SchemaVersion": 2, "ArtifactName": "x"});
        assert_eq!(ScanReport::read(&nothing.to_string()).map(|s| (s.critical, s.high)), Ok((0, 0)));
    }

    #[test]
    fn sarif_is_read() {
        let rule = |id: &str, score: &str| json!({"id": id, "properties": {"security-severity": score}});
        let report = json!({"version": "2.1.0", "runs": [{
            "tool": {"driver": {"name": "x", "rules": [rule("A", "9.8"), rule("B", "7.0"), rule("C", "6.9")]}},
            "results": [{"ruleId": "A"}, {"ruleIndex": 1}, {"ruleId": "C", "level": "error"},
                {"ruleId": "D", "level": "error"}, {"ruleId": "E", "level": "warning"}],
            "invocations": [{"endTimeUtc": "2026-05-30T10:00:00Z"}],
            "properties": {"imageName": "registry.example.com/x:1", "repoDigests": [], "repoTags": []}}]});
        let scan = ScanReport::read(&report.to_string()).unwrap();
        assert_eq!((scan.critical, scan.high), (1, 2), "one by its rule, one by its level");
        assert!(scan.is_about("registry.example.com/x:1") && !scan.is_about("registry.example.com/x:2"));
        assert_eq!(scan.at, "2026-05-30T10:00:00Z".parse().ok());
    }

    #[test]
    fn reports_of_the_operator_are_read() {
        let report = json!({"kind": "VulnerabilityReport", "report": {"updateTimestamp": "2026-05-30T10:00:00Z",
            "registry": {"server": "index.docker.io"}, "artifact": {"repository": "library/nginx", "tag": "1.16"},
            "summary": {"criticalCount": 3, "highCount": 4}}});
        let scan = ScanReport::read(&report.to_string()).unwrap();
        assert_eq!((scan.critical, scan.high), (3, 4));
        assert!(scan.is_about("nginx:1.16"));
    }

    #[test]
    fn what_is_no_whole_report_is_refused() {
        let error = |text: &str| ScanReport::read(text).unwrap_err();
        assert!(matches!(error("{"), ScanError::Malformed(_)));
        assert!(matches!(error(&"[".repeat(100_000)), ScanError::Malformed(_)));
        for text in ["{}", "[]", "1", r#"{"version": "2.0.0", "runs": []}"#] {
            assert_eq!(error(text), ScanError::Unknown, "{text}");
        }
        assert_eq!(error(r#"{"version": "2.1.0", "runs": []}"#), ScanError::Incomplete("run"));
        assert_eq!(error(r#"{"version": "2.1.0", "runs": [{}]}"#), ScanError::Incomplete("list of results"));
        let finding = r#"{"SchemaVersion": 2, "ArtifactName": "x", "Results": [{"Vulnerabilities": [{}]}]}"#;
        assert_eq!(error(finding), ScanError::Incomplete("severity of a finding"));
        assert_eq!(
            error(r#"{"kind": "VulnerabilityReport", "report": {"artifact": {"repository": "x"}}}"#),
            ScanError::Incomplete("summary")
        );
    }
}
