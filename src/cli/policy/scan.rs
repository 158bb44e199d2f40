//! Reports of scanners that are given beside the files.

use std::path::Path;

use jiff::Timestamp;

use super::read::{self, Document};
use crate::{
    cli::exit::Failure,
    policy::scan::{ScanReport, image_of},
};

/// Writes what scanners found into the servers that run the images.
pub fn apply(given: &[String], documents: &mut [Document], now: Timestamp) -> Result<(), Failure> {
    for given in given {
        let (report, otherwise) = report(given, now)?;
        let mut counts = false;
        for document in documents.iter_mut() {
            if image_of(&document.object).is_some_and(|image| report.is_about(image)) {
                report.annotate(&mut document.object, otherwise);
                counts = true;
            }
        }
        if !counts {
            complain!("note: {given} is about {}, which no server here runs", report.images.join(", "));
        }
    }
    Ok(())
}

/// A report, and when it was written.
fn report(given: &str, now: Timestamp) -> Result<(ScanReport, Timestamp), Failure> {
    // A file may have any name.
    let (image, file) = match given.split_once('=') {
        Some((image, file)) if !Path::new(given).exists() => (Some(image), file),
        _ => (None, given),
    };
    let path = Path::new(file);
    let text = read::text(path).map_err(|error| Failure::usage(format!("{file} cannot be read: {error}")))?;
    let mut report = ScanReport::read(&text)
        .map_err(|error| Failure::usage(format!("{file} is not taken as a report of a scanner: {error}")))?;
    if let Some(image) = image {
        report.images = vec![image.to_owned()];
    }
    if report.images.is_empty() {
        return Err(Failure::usage(format!("{file} does not say which image was scanned: --scan IMAGE={file}")));
    }
    let written = path.metadata().and_then(|m| m.modified()).ok().and_then(|time| Timestamp::try_from(time).ok());
    Ok((report, written.unwrap_or(now)))
}
