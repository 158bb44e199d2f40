module perch.dev/tests/cluster/tools/probe

go 1.26.0
