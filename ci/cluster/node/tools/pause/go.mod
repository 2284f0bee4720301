module modelwharf/tools/pause

go 1.23
