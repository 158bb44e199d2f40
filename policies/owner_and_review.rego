# Somebody answers for the server, and has looked at it lately.
package perch.rules.owner_and_review

import data.perch.lib

about := {
	"rule": "owner-and-review",
	"severity": "Low",
	"remedy": "set spec.governance.owner, and the annotation policy.perch.dev/reviewed-at to the day of the last review",
}

default owner := ""

owner := lib.subject.spec.governance.owner

violation contains lib.violation(about, "spec.governance.owner", "nobody is named who answers for the server") if {
	lib.is_on(about.rule)
	lib.is_server
	owner == ""
}

violation contains lib.violation(about, "metadata.annotations[policy.perch.dev/reviewed-at]", "no review of the server is recorded") if {
	lib.is_on(about.rule)
	lib.is_server
	object.get(lib.annotations, "policy.perch.dev/reviewed-at", "") == ""
}

violation contains lib.violation(about, "metadata.annotations[policy.perch.dev/reviewed-at]", message) if {
	lib.is_on(about.rule)
	lib.is_server
	given := object.get(lib.annotations, "policy.perch.dev/reviewed-at", "")
	given != ""
	some message in problems(given)
}

problems(given) := {sprintf("%q is not a day, as in 2026-01-31", [given])} if not lib.days_since(given)

problems(given) := {sprintf("the last review was on %s, more than %d days ago", [given, lib.parameters.reviewMaxAgeDays]) |
	lib.days_since(given) > lib.parameters.reviewMaxAgeDays
} if lib.days_since(given)
