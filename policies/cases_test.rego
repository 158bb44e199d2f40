# Runs the cases beside the rules: `opa test policies/`.
package perch.cases_test

import data.perch

now := "2026-06-01T00:00:00Z"

# All violations of each case, by rule, for comparison with another engine.
results := {rule: judged |
	some rule, list in data.cases
	judged := [judge(case) | some case in list]
}

judge(case) := violations if {
	levels := object.union(perch.levels, object.get(case, ["settings", "perch", "levels"], {}))
	given := object.union({"object": case.object, "level": case.level, "now": now}, object.filter(case, ["images"]))
	violations := perch.violations with input as given
		with data.perch.levels as levels
}

test_cases[note] if {
	some rule, list in data.cases
	some i, case in list
	note := sprintf("%s: %s", [rule, case.name])
	found := {v.field | some v in results[rule][i]; v.rule == rule}
	found == {field | some field in case.found}
}

# Cases that are not there pass as well.
test_cases_are_there if count([1 | some list in results; some _ in list]) > 100

# Each rule that a level names has cases.
test_each_rule_has_cases if {
	every level in perch.levels {
		every rule, _ in level.rules {
			count(data.cases[rule]) > 1
		}
	}
}
