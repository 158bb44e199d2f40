//! What objects mean: schemas, metadata, patches, field ownership, selectors, tables.
//!
//! Pure functions on JSON values: no store, no clock, no I/O.

pub mod builtin;
pub mod config_data;
pub mod field_set;
pub mod managed_fields;
pub mod meta;
pub mod names;
pub mod patch;
pub mod schema;
pub mod selector;
pub mod small_kinds;
pub mod table;
pub mod typed;
pub mod typed_patch;
