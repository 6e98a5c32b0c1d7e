package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"guywire/mesh/kernel"
)

// notesFile is the name of the file of original values in the state folder.
const notesFile = "sysctl.json"

// Sysctls is the kernel.Backend of kernel.PartSysctls. It writes down what a
// setting was before its first change, durably and before the change, so that
// even after a crash RestoreSysctls knows. It is safe for concurrent use.
type Sysctls struct {
	proc  *os.Root // /proc/sys
	state *os.Root
	mu    sync.Mutex
	notes map[string]string // path → original value
}

var _ kernel.Backend = (*Sysctls)(nil)

// NewSysctls keeps its notes in the folder stateDir, which must exist.
func NewSysctls(stateDir string) (*Sysctls, error) { return newSysctls(stateDir, "/proc/sys") }

func newSysctls(stateDir, proc string) (*Sysctls, error) {
	state, err := os.OpenRoot(stateDir)
	if err != nil {
		return nil, fmt.Errorf("open state folder: %w", err)
	}
	s := &Sysctls{state: state}
	if s.proc, err = os.OpenRoot(proc); err != nil {
		state.Close()
		return nil, fmt.Errorf("open kernel settings: %w", err)
	}
	b, err := state.ReadFile(notesFile)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		s.notes, err = parseNotes(b)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("read %s/%s (if it is damaged, remove it; kernel settings then stay as they are at teardown): %w", stateDir, notesFile, err)
	}
	return s, nil
}

// Close releases the folders. Settings stay as they are.
func (s *Sysctls) Close() error { return errors.Join(s.state.Close(), closeRoot(s.proc)) }

func closeRoot(r *os.Root) error {
	if r == nil {
		return nil
	}
	return r.Close()
}

// notes is the content of notesFile.
type notes struct {
	Version  int               `json:"version"`
	Original map[string]string `json:"original"`
}

// parseNotes reads notesFile; an empty one holds no notes.
func parseNotes(b []byte) (map[string]string, error) {
	n := notes{Version: 1}
	if len(b) > 0 {
		if err := json.Unmarshal(b, &n); err != nil {
			return nil, err
		}
	}
	if n.Version != 1 {
		return nil, fmt.Errorf("version %d is not known", n.Version)
	}
	for path, value := range n.Original {
		if err := check(kernel.Sysctl{Path: path, Value: value}); err != nil {
			return nil, err
		}
	}
	if n.Original == nil {
		n.Original = map[string]string{}
	}
	return n.Original, nil
}

var (
	pathPattern  = regexp.MustCompile(`^net/(ipv4|ipv6|core)(/[A-Za-z0-9_.:@-]+)+$`)
	valuePattern = regexp.MustCompile(`^[0-9a-fx. -]{1,128}$`)
)

// check reports why a setting is none that Guywire may touch.
func check(c kernel.Sysctl) error {
	for element := range strings.SplitSeq(c.Path, "/") {
		if element == "." || element == ".." {
			return fmt.Errorf("setting %q is not a plain path", c.Path)
		}
	}
	if !pathPattern.MatchString(c.Path) {
		return fmt.Errorf("setting %q is not one of the network", c.Path)
	}
	if !valuePattern.MatchString(c.Value) {
		return fmt.Errorf("value %q of %s is not a number or list of numbers", c.Value, c.Path)
	}
	return nil
}

// Observe implements kernel.Backend. It knows the settings that were noted;
// those whose device is gone are left out.
func (s *Sysctls) Observe(ctx context.Context) (kernel.State, error) {
	if err := ctx.Err(); err != nil {
		return kernel.State{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out kernel.State
	for _, path := range slices.Sorted(maps.Keys(s.notes)) {
		value, err := s.read(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return kernel.State{}, fmt.Errorf("read %s: %w", path, err)
		default:
			out.Sysctls = append(out.Sysctls, kernel.Sysctl{Path: path, Value: value})
		}
	}
	return out, nil
}

// Do implements kernel.Backend.
func (s *Sysctls) Do(ctx context.Context, op kernel.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch op := op.(type) {
	case kernel.SetSysctl:
		err = s.set(op.Sysctl)
	case kernel.RestoreSysctls:
		err = s.restore()
	default:
		err = errors.ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func (s *Sysctls) set(c kernel.Sysctl) error {
	if err := check(c); err != nil {
		return err
	}
	now, err := s.read(c.Path)
	if err != nil {
		return err
	}
	if _, noted := s.notes[c.Path]; !noted {
		with := maps.Clone(s.notes)
		with[c.Path] = now
		if err := s.save(with); err != nil {
			return fmt.Errorf("note what it was: %w", err)
		}
		s.notes = with
	}
	if now == c.Value {
		return nil
	}
	return s.write(c.Path, c.Value)
}

// restore writes all original values back. Settings of devices that are gone
// need none; what fails stays noted.
func (s *Sysctls) restore() error {
	left := map[string]string{}
	var errs error
	for _, path := range slices.Sorted(maps.Keys(s.notes)) {
		if err := s.write(path, s.notes[path]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			left[path] = s.notes[path]
			errs = errors.Join(errs, fmt.Errorf("restore %s: %w", path, err))
		}
	}
	if err := s.save(left); err != nil {
		return errors.Join(errs, err)
	}
	s.notes = left
	return errs
}

// read gives a value with single spaces, as it is written.
func (s *Sysctls) read(path string) (string, error) {
	b, err := s.proc.ReadFile(path)
	return strings.Join(strings.Fields(string(b)), " "), err
}

func (s *Sysctls) write(path, value string) error {
	f, err := s.proc.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// save replaces notesFile, all or nothing; without notes it is removed.
func (s *Sysctls) save(original map[string]string) error {
	if len(original) == 0 {
		if err := s.state.Remove(notesFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return s.sync()
	}
	b, err := json.MarshalIndent(notes{Version: 1, Original: original}, "", "\t")
	if err != nil {
		return err
	}
	const temporary = notesFile + ".new"
	f, err := s.state.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := s.state.Rename(temporary, notesFile); err != nil {
		return err
	}
	return s.sync()
}

// sync makes a rename or a removal last.
func (s *Sysctls) sync() error {
	dir, err := s.state.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
