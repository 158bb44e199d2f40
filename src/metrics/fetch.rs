//! One bounded GET.

use std::{error::Error as _, time::Duration};

use url::Url;

/// Status and body of an answer.
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Gets a document, or says in a few words why not. The words never hold the address, for it may
/// hold a password, nor anything of the document.
pub(super) async fn get(
    http: &reqwest::Client,
    url: Url,
    patience: Duration,
    most_bytes: usize,
) -> Result<Answer, String> {
    let work = async {
        let request = http.get(url).header("Accept", "application/json");
        let mut response = request.send().await.map_err(|error| explain(&error))?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| explain(&error))? {
            if body.len() + chunk.len() > most_bytes {
                return Err(format!("the answer is larger than {most_bytes} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body })
    };
    let late = || format!("no answer within {} ms", patience.as_millis());
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err(late()))
}

fn explain(error: &reqwest::Error) -> String {
    // The innermost cause says it: "Connection refused", "dns error".
    let mut cause: &dyn std::error::Error = match error.source() {
        Some(source) => source,
        None => return if error.is_timeout() { "no answer in time".into() } else { "the answer broke off".into() },
    };
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    format!("it cannot be reached: {cause}")
}
