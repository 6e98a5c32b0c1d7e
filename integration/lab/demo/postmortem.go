package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"guywire/mesh/api"
)

const (
	tailLines  = 10 // printed of a log
	tailEvents = 8  // printed of a site's events
	maxLog     = 16 << 20
	lastWords  = 20 * time.Second // for all of the post-mortem
)

// postMortem keeps the logs and prints the ends of those that matter: of the sites on the ways of the broken rows and of
// those that the error names, or of all.
func (d *demo) postMortem(ctx context.Context, broken []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	logs := filepath.Join(d.lab.Dir(), "nodes")
	for _, s := range concerned(d.sites, broken, err) {
		d.screen.say("\n── %s: the end of its meshd's log, and its last events", s.name)
		for _, line := range tail(filepath.Join(logs, s.name, "meshd.log"), tailLines) {
			d.screen.say("   %s", shorten(line, width-3))
		}
		for _, e := range d.lastEvents(ctx, s) {
			line := fmt.Sprintf("%s  %s  %s", e.Time.Format("15:04:05.000"), e.Kind, e.Sentence)
			if e.Cause != "" {
				line += ": " + e.Cause
			}
			d.screen.say("   %s", shorten(line, width-3))
		}
	}
	if d.opts.LogDir == "" {
		return
	}
	if err := keepLogs(d.lab.Dir(), d.opts.LogDir); err != nil {
		d.screen.say("\nThe logs could not be kept: %v", err)
		return
	}
	d.screen.say("\nAll logs are in %s.", d.opts.LogDir)
}

// concerned returns the sites whose logs matter.
func concerned(sites []*site, broken []Row, err error) []*site {
	var on []*site
	for _, s := range sites {
		named := err != nil && slices.Contains(words(err.Error()), s.name)
		if named || slices.ContainsFunc(broken, func(r Row) bool { return slices.Contains(r.sites, s.name) }) {
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
func (d *demo) lastEvents(ctx context.Context, s *site) []api.Event {
	out, err := d.run(ctx, s.name, "", "meshctl", "events", "--json")
	if err != nil {
		return nil
	}
	var events []api.Event
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var e api.Event
		if dec.Decode(&e) != nil {
			break
		}
		events = append(events, e)
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

// keepLogs copies every log below a lab's directory, under the same names, and nothing else of it: it has keys.
func keepLogs(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Ext(path) != ".log" {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return copyEnd(path, filepath.Join(to, name))
	})
}

// copyEnd copies a file, of a huge one the end.
func copyEnd(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if info, err := in.Stat(); err == nil && info.Size() > maxLog {
		if _, err := in.Seek(-maxLog, io.SeekEnd); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, maxLog))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return err
}
