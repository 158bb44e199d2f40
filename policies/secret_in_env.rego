# No secret stands in plain sight. Values are never part of the message.
package perch.rules.secret_in_env

import data.perch.lib

about := {
	"rule": "secret-in-env",
	"severity": "High",
	"remedy": "put the value into a Secret and refer to it (valueFrom.secretKeyRef, or a mounted file), and replace the value: it has been seen",
}

# Names that mean a secret, unless they name where one is kept.
names := `(?i)(^|[_.-])(password|passwd|secret|token|api_?key|access_?key|private_?key|credentials?)$`

# Forms of well-known credentials: AWS, GitHub, GitLab, Slack, OpenAI and alike, JWT, PEM.
values := `^(AKIA[0-9A-Z]{16}|gh[pousr]_[0-9A-Za-z]{36,}|glpat-[0-9A-Za-z_-]{20,}|xox[abprs]-[0-9A-Za-z-]{10,}|sk-[0-9A-Za-z_-]{20,}|eyJ[0-9A-Za-z_-]+\.eyJ[0-9A-Za-z_-]+\..*|-----BEGIN [A-Z ]*PRIVATE KEY-----)`

# Credentials in a URL.
urls := `^[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s:@]+@`

violation contains lib.violation(about, e.path, sprintf("the variable %s of %s holds a secret in plain sight", [e.name, c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	some e in c.env
	not is_reference(e.value)
	is_secret(e)
}

is_secret(e) if regex.match(names, e.name)

is_secret(e) if regex.match(values, e.value)

is_secret(e) if regex.match(urls, e.value)

# Empty, or filled in elsewhere.
is_reference(value) if value == ""

is_reference(value) if regex.match(`^\$[{(]?[A-Za-z_][^\s]*$`, value)
