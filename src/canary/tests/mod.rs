//! Whole decisions: each line of "must hold" that can be decided without a clock or a network.

mod commands;
mod example;
mod outages;
mod routes;
mod rules;
mod whatever;
mod world;
