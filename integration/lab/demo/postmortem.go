package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

const (
	tailLines  = 10               // printed of a log
	tailEvents = 8                // printed of a site's events
	lastWords  = 20 * time.Second // for all of the post-mortem
)

// postMortem keeps the logs and prints the ends of those that matter: of the sites on the ways of the broken rows and of
// those that the error names, or of all.
func (d *demo) postMortem(ctx context.Context, broken []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	dir, logErr := d.Nodes.Logs(ctx)
	if logErr != nil {
		d.Screen.Say("\nNot all logs can be read: %v", logErr)
	}
	logs := filepath.Join(dir, "nodes")
	for _, s := range concerned(d.Sites, broken, err) {
		d.Screen.Say("\n── %s: the end of its meshd's log, and its last events", s.Name)
		for _, line := range tail(filepath.Join(logs, s.Name, "meshd.log"), tailLines) {
			d.Screen.Say("   %s", screen.Shorten(line, screen.Width-3))
		}
		for _, e := range d.lastEvents(ctx, s) {
			line := fmt.Sprintf("%s  %s  %s", e.Time.Format("15:04:05.000"), e.Kind, e.Sentence)
			if e.Cause != "" {
				line += ": " + e.Cause
			}
			d.Screen.Say("   %s", screen.Shorten(line, screen.Width-3))
		}
	}
	if d.opts.LogDir == "" {
		return
	}
	if err := world.KeepLogs(dir, d.opts.LogDir); err != nil {
		d.Screen.Say("\nThe logs could not be kept: %v", err)
		return
	}
	d.Screen.Say("\nAll logs are in %s.", d.opts.LogDir)
}

// concerned returns the sites whose logs matter.
func concerned(sites []*world.Site, broken []Row, err error) []*world.Site {
	var on []*world.Site
	for _, s := range sites {
		named := err != nil && slices.Contains(words(err.Error()), s.Name)
		if named || slices.ContainsFunc(broken, func(r Row) bool { return slices.Contains(r.Sites, s.Name) }) {
			on = append(on, s)
		}
	}
	if len(on) == 0 {
		return sites
	}
	return on
}

// words splits a text at everything that is not a letter or a digit.
func words(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

// lastEvents asks a site what happened there; a dead agent tells nothing.
func (d *demo) lastEvents(ctx context.Context, s *world.Site) []api.Event {
	events, err := d.Events(ctx, s)
	if err != nil {
		return nil
	}
	return events[max(len(events)-tailEvents, 0):]
}

// tail returns the last lines of a file; none when it cannot be read.
func tail(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	const enough = 64 << 10
	if info, err := f.Stat(); err == nil && info.Size() > enough {
		_, _ = f.Seek(-enough, io.SeekEnd)
	}
	data, _ := io.ReadAll(io.LimitReader(f, enough))
	lines := slices.Collect(strings.Lines(string(data)))
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], "\n")
	}
	return lines[max(len(lines)-n, 0):]
}
