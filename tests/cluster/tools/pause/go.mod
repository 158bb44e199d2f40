module perch.dev/tests/cluster/tools/pause

go 1.26.0
