//! Counters from a Prometheus server, or anything that speaks its query API.

use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::{
    Limits, Question, fetch,
    number::{Pair, Trouble, fill_in, reading},
};
use crate::{api::canary_release::Metric, canary::Reading};

/// Longest message of the server that is passed on, in characters.
const LONGEST: usize = 200;

/// Asks for bad events and all events of both revisions.
pub(super) async fn read(http: &reqwest::Client, limits: &Limits, metric: &Metric, question: &Question<'_>) -> Reading {
    let (Some(address), Some(bad), Some(total)) = (&metric.address, &metric.bad, &metric.total) else {
        return Reading::Unknown(format!("metric {} needs address, bad and total", metric.name));
    };
    let counters = async |revision: &str| -> Pair {
        let ask = |query: &str| number(http, limits, fill_in(address, revision), fill_in(query, revision));
        tokio::try_join!(ask(bad), ask(total))
    };
    let (candidate, stable) = tokio::join!(counters(question.candidate), counters(question.stable));
    reading("prometheus", question, candidate, stable)
}

/// What <https://prometheus.io/docs/prometheus/latest/querying/api/> says an answer looks like.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status: String,
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    error_type: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Value,
}

async fn number(http: &reqwest::Client, limits: &Limits, address: String, query: String) -> Result<f64, Trouble> {
    let unknown = |why: &str| Trouble::Unknown(format!("Prometheus: {why}"));
    let url = url(&address, &query).ok_or_else(|| unknown("the address is no URL of a server"))?;
    let answer = fetch::get(http, url, limits.provider, limits.bytes).await.map_err(|why| unknown(&why))?;
    let parsed: Option<Answer> = serde_json::from_slice(&answer.body).ok();
    match parsed {
        Some(told) if answer.status == 200 && told.status == "success" => {
            if let Some(warning) = told.warnings.first() {
                // Parts of a federation that are missing look like counters that fell.
                return Err(unknown(&format!("the answer may not be whole: {}", short(warning))));
            }
            let data = told.data.ok_or_else(|| unknown("the answer has no data"))?;
            one(&data).map_err(|why| Trouble::NoData(format!("Prometheus: {why}")))
        }
        Some(Answer { error: Some(error), error_type: Some(_), .. }) => Err(unknown(&short(&error))),
        _ => Err(unknown(&format!("it answered {} and nothing that Prometheus would say", answer.status))),
    }
}

fn url(address: &str, query: &str) -> Option<Url> {
    let mut url = Url::parse(address).ok()?;
    url.path_segments_mut().ok()?.pop_if_empty().extend(["api", "v1", "query"]);
    url.query_pairs_mut().append_pair("query", query);
    Some(url)
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

/// The one number of a scalar, or of a vector with one series.
fn one(data: &Data) -> Result<f64, String> {
    let sample = match (data.result_type.as_str(), &data.result) {
        ("scalar", Value::Array(_)) => &data.result,
        ("vector", Value::Array(series)) => match series.as_slice() {
            [] => return Err("the query found no series; if that means none, write `… or vector(0)`".into()),
            [one] => &one["value"],
            many => return Err(format!("the query found {} series, and it must be one: write sum(…)", many.len())),
        },
        (other, _) => return Err(format!("the query gives a {}, and it must be one number", short(other))),
    };
    let text = sample[1].as_str().ok_or("the sample has no value")?;
    text.parse().map_err(|_| "the value is no number".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(result_type: &str, result: Value) -> Result<f64, String> {
        one(&Data { result_type: result_type.into(), result })
    }

    #[test]
    fn exactly_one_number_counts() {
        assert_eq!(of("vector", json!([{"metric": {"a": "b"}, "value": [1.5, "42"]}])), Ok(42.0));
        assert_eq!(of("scalar", json!([1.5, "0"])), Ok(0.0));
        assert!(of("vector", json!([{"value": [1, "NaN"]}])).unwrap().is_nan());
        assert_eq!(of("vector", json!([{"value": [1, "+Inf"]}])), Ok(f64::INFINITY));
        for (type_, result, why) in [
            ("vector", json!([]), "no series"),
            ("vector", json!([{"value": [1, "1"]}, {"value": [1, "2"]}]), "2 series"),
            ("vector", json!([{"metric": {}, "histogram": [1, {}]}]), "no value"),
            ("matrix", json!([{"values": [[1, "1"]]}]), "gives a matrix"),
            ("string", json!([1, "12"]), "gives a string"),
            ("vector", json!([{"value": [1, "many"]}]), "no number"),
            ("vector", json!({}), "gives a vector"),
        ] {
            assert!(of(type_, result.clone()).unwrap_err().contains(why), "{type_} {result}");
        }
    }

    #[test]
    fn the_query_api_is_found_below_any_address() {
        let path = |address: &str| url(address, "a{b=\"c\"} + 1").unwrap().to_string();
        let query = "api/v1/query?query=a%7Bb%3D%22c%22%7D+%2B+1";
        assert_eq!(path("http://p:9090"), format!("http://p:9090/{query}"));
        assert_eq!(path("http://p:9090/"), format!("http://p:9090/{query}"));
        assert_eq!(path("https://p/prefix/"), format!("https://p/prefix/{query}"));
        assert_eq!(
            path("https://p/x?dedup=true"),
            format!("https://p/x/{}", query.replace("?query", "?dedup=true&query"))
        );
        assert!(url("mailto:x", "y").is_none());
    }
}
