//! What objects mean: schemas, patches, managed fields. Pure functions on JSON values.
