package config

import (
	"errors"
	"fmt"
	"strings"
)

// ErrTooLarge is returned for a file above MaxBytes.
var ErrTooLarge = fmt.Errorf("the configuration is larger than %d bytes: is this the right file?", MaxBytes)

// A Fault is one thing wrong in the file, and where.
type Fault struct {
	Line, Column int // from 1; 0: the file as a whole
	Source       string
	Message      string
}

// Error gives position and message, then the offending line with a mark under it.
func (f *Fault) Error() string {
	if f.Line == 0 {
		return f.Message
	}
	source := []rune(f.Source)
	at := min(max(f.Column-1, 0), len(source))
	if from := at - shown/2; len(source) > shown && from > 0 {
		source, at = source[from:], at-from
	}
	source = source[:min(len(source), shown)]
	return fmt.Sprintf("line %d, column %d: %s\n    %s\n    %s^", f.Line, f.Column, f.Message, string(source), strings.Repeat(" ", at))
}

// shown is how much of a very long line is shown around the fault.
const shown = 90

// maxFaults bounds how many faults one Parse reports.
const maxFaults = 10

// joined gives all faults as one error, nil for none.
func joined(faults []*Fault) error {
	errs := make([]error, 0, maxFaults)
	for i, f := range faults {
		if i == maxFaults {
			errs = append(errs, fmt.Errorf("and %d more", len(faults)-maxFaults))
			break
		}
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}
