package world

import (
	"fmt"
	"strings"
)

// exitError is a command inside the lab that ended with another code than 0.
type exitError struct {
	node, command string
	code          int
	said          string // on standard error
}

func (e *exitError) Error() string {
	s := fmt.Sprintf("%s on %s: exit code %d", e.command, e.node, e.code)
	if e.said != "" {
		s += ": " + e.said
	}
	return s
}

// sentence makes one line of what a program said on standard error.
func sentence(said string) string {
	var lines []string
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	const most = 4 // the last lines tell
	return strings.Join(lines[max(len(lines)-most, 0):], "; ")
}
