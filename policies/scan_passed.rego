# The image was scanned lately, with few findings. The pipeline that scans says so in annotations.
package perch.rules.scan_passed

import data.perch.lib

about := {
	"rule": "scan-passed",
	"severity": "High",
	"remedy": "scan the image, mend what is found, and record the result: annotations policy.perch.dev/scanned-at, scan-critical and scan-high",
}

# Only images are scanned: packages and remote servers are not here to look into.
is_asked if {
	lib.is_on(about.rule)
	lib.is_server
	lib.subject.spec.image
}

at := "policy.perch.dev/scanned-at"

field(name) := sprintf("metadata.annotations[policy.perch.dev/%s]", [name])

violation contains lib.violation(about, field("scanned-at"), "no scan of the image is recorded") if {
	is_asked
	object.get(lib.annotations, at, "") == ""
}

violation contains lib.violation(about, field("scanned-at"), sprintf("%q is not a time, as in 2026-01-31T12:00:00Z", [given])) if {
	is_asked
	given := object.get(lib.annotations, at, "")
	given != ""
	not lib.days_since(given)
}

violation contains lib.violation(about, field("scanned-at"), sprintf("the last scan was at %s, more than %d days ago", [given, lib.parameters.scanMaxAgeDays])) if {
	is_asked
	given := object.get(lib.annotations, at, "")
	given != ""
	lib.days_since(given) > lib.parameters.scanMaxAgeDays
}

bounds := {
	"scan-critical": lib.parameters.scanMaxCritical,
	"scan-high": lib.parameters.scanMaxHigh,
}

violation contains lib.violation(about, field(name), sprintf("%d findings, %d are allowed", [found, most])) if {
	is_asked
	object.get(lib.annotations, at, "") != ""
	some name, most in bounds
	found := to_number(object.get(lib.annotations, sprintf("policy.perch.dev/%s", [name]), ""))
	found > most
}

violation contains lib.violation(about, field(name), "the number of findings is not recorded") if {
	is_asked
	object.get(lib.annotations, at, "") != ""
	some name, _ in bounds
	not regex.match(`^\d{1,9}$`, object.get(lib.annotations, sprintf("policy.perch.dev/%s", [name]), ""))
}
