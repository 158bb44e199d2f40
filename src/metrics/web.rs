//! Counters from a JSON document on the web.

use serde_json::Value;
use serde_json_path::JsonPath;
use url::Url;

use super::{
    Limits, Question, fetch,
    number::{Pair, Trouble, fill_in, reading},
};
use crate::{api::canary_release::Metric, canary::Reading};

/// Reads bad events and all events of both revisions. Both paths look into one document, so the two
/// numbers belong together.
pub(super) async fn read(http: &reqwest::Client, limits: &Limits, metric: &Metric, question: &Question<'_>) -> Reading {
    let (Some(address), Some(bad), Some(total)) = (&metric.address, &metric.bad, &metric.total) else {
        return Reading::Unknown(format!("metric {} needs address, bad and total", metric.name));
    };
    let (for_candidate, for_stable) = (fill_in(address, question.candidate), fill_in(address, question.stable));
    let (candidate, stable) = if for_candidate == for_stable {
        let document = document(http, limits, &for_candidate).await;
        (document.clone(), document)
    } else {
        tokio::join!(document(http, limits, &for_candidate), document(http, limits, &for_stable))
    };
    let pair = |document: Result<Value, Trouble>, revision: &str| -> Pair {
        let document = document?;
        Ok((find(&document, &fill_in(bad, revision))?, find(&document, &fill_in(total, revision))?))
    };
    reading("web", question, pair(candidate, question.candidate), pair(stable, question.stable))
}

async fn document(http: &reqwest::Client, limits: &Limits, address: &str) -> Result<Value, Trouble> {
    let unknown = |why: &str| Trouble::Unknown(format!("web metric: {why}"));
    let url = Url::parse(address).map_err(|_| unknown("the address is no URL"))?;
    let answer = fetch::get(http, url, limits.provider, limits.bytes).await.map_err(|why| unknown(&why))?;
    if answer.status != 200 {
        return Err(unknown(&format!("it answered {} and not 200", answer.status)));
    }
    serde_json::from_slice(&answer.body).map_err(|_| unknown("the answer is no JSON"))
}

/// The one number at a path.
fn find(document: &Value, path: &str) -> Result<f64, Trouble> {
    let no_data = |why: &str| Trouble::NoData(format!("web metric: {path}: {why}"));
    // A path that cannot be read never will be: hold, and say so.
    let parsed = JsonPath::parse(path)
        .map_err(|error| Trouble::Unknown(format!("web metric: {path} is no JSONPath: {}", error.message())))?;
    match parsed.query(document).all().as_slice() {
        [] => Err(no_data("nothing is there")),
        [Value::Number(number)] => number.as_f64().ok_or_else(|| no_data("the number is out of range")),
        [_] => Err(no_data("what is there is no number")),
        many => Err(no_data(&format!("{} values are there, and it must be one", many.len()))),
    }
}
