package api

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"
)

// SchemaNumber is the version of all documents. It grows when a field is
// renamed, removed or changes its meaning; new fields do not change it.
const SchemaNumber = 1

// A Schema is the field "schema" of a document. Its zero value is right: it
// always writes SchemaNumber and refuses to read another.
type Schema struct{}

// MarshalJSON implements json.Marshaler.
func (Schema) MarshalJSON() ([]byte, error) { return strconv.AppendInt(nil, SchemaNumber, 10), nil }

// UnmarshalJSON implements json.Unmarshaler.
func (*Schema) UnmarshalJSON(b []byte) error {
	if n, err := strconv.Atoi(string(b)); err != nil || n != SchemaNumber {
		return fmt.Errorf("schema %s is not %d: use meshctl and meshd of one version", b, SchemaNumber)
	}
	return nil
}

// Millis gives d as the documents hold durations: milliseconds, to the microsecond.
func Millis(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}

// A List is a slice that is never null in a document: nil is written as [].
type List[T any] []T

// MarshalJSON implements json.Marshaler.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}
