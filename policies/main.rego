# Every violation of every shipped rule.
package perch

violations contains v if some v in data.perch.rules.readable.violation

violations contains v if some v in data.perch.rules.privileged.violation

violations contains v if some v in data.perch.rules.run_as_non_root.violation

violations contains v if some v in data.perch.rules.capabilities.violation

violations contains v if some v in data.perch.rules.secret_in_env.violation

violations contains v if some v in data.perch.rules.resource_limits.violation

violations contains v if some v in data.perch.rules.registry_allow_list.violation

violations contains v if some v in data.perch.rules.read_only_root.violation

violations contains v if some v in data.perch.rules.health_probe.violation

violations contains v if some v in data.perch.rules.image_digest.violation

violations contains v if some v in data.perch.rules.image_signed.violation

violations contains v if some v in data.perch.rules.owner_and_review.violation

violations contains v if some v in data.perch.rules.egress_named.violation

violations contains v if some v in data.perch.rules.network_tier.violation

violations contains v if some v in data.perch.rules.scan_passed.violation

violations contains v if some v in data.perch.rules.test_coverage.violation
