package api

import (
	"errors"
	"fmt"
	"net/http"
)

// A Code names an error for programs. Codes do not change their meaning.
type Code string

// Codes. Those of refusals by the store have the store's own text.
const (
	CodeInternal    Code = "internal"    // a fault of ours; see the daemon's log
	CodeInvalid     Code = "invalid"     // the request makes no sense
	CodeNotRunning  Code = "not-running" // no daemon on the socket (client only)
	CodeForbidden   Code = "forbidden"
	CodePrivilege   Code = "privilege" // the daemon lacks a capability or /dev/net/tun
	CodeNotFound    Code = "not-found"
	CodeUnreachable Code = "unreachable"
	CodeTimeout     Code = "timeout"
	CodeNoLeader    Code = "no-leader" // no quorum now: reads and forwarding go on
	CodeBusy        Code = "busy"      // too many requests at a time

	CodeTokenInvalid  Code = "token-invalid" // truncated or mistyped
	CodeTokenUnknown  Code = "token-unknown"
	CodeTokenUsed     Code = "token-used"
	CodeTokenExpired  Code = "token-expired"
	CodeTokenProof    Code = "token-proof"
	CodeServerKey     Code = "server-key" // the server's key is not the one in the token
	CodeRevoked       Code = "revoked"
	CodePrefixRefused Code = "prefix-refused"

	CodeNameInvalid   Code = "name-invalid"
	CodeNameTaken     Code = "name-taken"
	CodeIdentityTaken Code = "identity-taken"
	CodePoolEmpty     Code = "pool-empty"
	CodePoolRefused   Code = "pool-refused" // it overlaps a network in use, or cannot be one
	CodePrefixOverlap Code = "prefix-overlap"
	CodeInitialised   Code = "already-initialised"
	CodeEnrolled      Code = "already-enrolled"
	CodeNotEnrolled   Code = "not-enrolled"
	CodeJoinRunning   Code = "join-running"
	CodePortInUse     Code = "port-in-use"
	CodeLastVoter     Code = "last-voter"
	// CodeTopologyRefused is a rule that contradicts another, or parts the mesh.
	CodeTopologyRefused Code = "topology-refused"
	CodeState           Code = "state" // the state directory is another mesh's, or readable by others

	CodeIdentity     Code = "identity-needed" // nobody proved to be anyone
	CodeLastOperator Code = "last-operator"   // nobody would be left who may change anything
	CodeAddressTaken Code = "address-taken"
	CodeVersion      Code = "version"      // the mesh's version does not know it yet
	CodeUnsigned     Code = "unsigned"     // a command without a valid signature
	CodeStale        Code = "stale"        // a command signed too long ago
	CodeStaleBoot    Code = "stale-boot"   // a voter's log is an old copy, or a second one
	CodeLeaderSeen   Code = "leader-seen"  // the mesh needs no recovery
	CodePlanChanged  Code = "plan-changed" // the mesh is not as it was when the recovery was planned
	CodeCorrupt      Code = "corrupt"      // data that nobody of ours wrote: a broken audit trail
)

// Exit codes of meshctl.
const (
	ExitOK          = 0
	ExitUnexpected  = 1
	ExitUsage       = 2
	ExitNotRunning  = 3
	ExitRefused     = 4
	ExitNotFound    = 5
	ExitUnreachable = 6
	ExitDegraded    = 7
	ExitConflict    = 8
)

// codes says what follows from each code. One without a row counts as internal.
var codes = map[Code]struct{ status, exit int }{
	CodeInternal:      {http.StatusInternalServerError, ExitUnexpected},
	CodeInvalid:       {http.StatusBadRequest, ExitUsage},
	CodeNameInvalid:   {http.StatusBadRequest, ExitUsage},
	CodeNotRunning:    {http.StatusServiceUnavailable, ExitNotRunning},
	CodeForbidden:     {http.StatusForbidden, ExitRefused},
	CodePrivilege:     {http.StatusForbidden, ExitRefused},
	CodeTokenInvalid:  {http.StatusForbidden, ExitRefused},
	CodeTokenUnknown:  {http.StatusForbidden, ExitRefused},
	CodeTokenUsed:     {http.StatusForbidden, ExitRefused},
	CodeTokenExpired:  {http.StatusForbidden, ExitRefused},
	CodeTokenProof:    {http.StatusForbidden, ExitRefused},
	CodeServerKey:     {http.StatusForbidden, ExitRefused},
	CodeRevoked:       {http.StatusForbidden, ExitRefused},
	CodePrefixRefused: {http.StatusForbidden, ExitRefused},
	CodeNotFound:      {http.StatusNotFound, ExitNotFound},
	CodeUnreachable:   {http.StatusBadGateway, ExitUnreachable},
	CodeTimeout:       {http.StatusGatewayTimeout, ExitUnreachable},
	CodeNoLeader:      {http.StatusServiceUnavailable, ExitUnreachable},
	CodeBusy:          {http.StatusTooManyRequests, ExitUnreachable},
	CodeNameTaken:     {http.StatusConflict, ExitConflict},
	CodeIdentityTaken: {http.StatusConflict, ExitConflict},
	CodePoolEmpty:     {http.StatusConflict, ExitConflict},
	CodePoolRefused:   {http.StatusConflict, ExitConflict},
	CodeLastVoter:     {http.StatusConflict, ExitConflict},
	CodePrefixOverlap: {http.StatusConflict, ExitConflict},
	CodeInitialised:   {http.StatusConflict, ExitConflict},
	CodeEnrolled:      {http.StatusConflict, ExitConflict},
	CodeNotEnrolled:   {http.StatusConflict, ExitConflict},
	CodeJoinRunning:   {http.StatusConflict, ExitConflict},
	CodePortInUse:     {http.StatusConflict, ExitConflict},
	CodeState:         {http.StatusConflict, ExitConflict},

	CodeTopologyRefused: {http.StatusConflict, ExitConflict},
	CodeIdentity:        {http.StatusUnauthorized, ExitRefused},
	CodeLastOperator:    {http.StatusConflict, ExitConflict},
	CodeAddressTaken:    {http.StatusConflict, ExitConflict},
	CodeVersion:         {http.StatusConflict, ExitConflict},
	CodeUnsigned:        {http.StatusForbidden, ExitRefused},
	CodeStale:           {http.StatusConflict, ExitConflict},
	CodeStaleBoot:       {http.StatusConflict, ExitConflict},
	CodeLeaderSeen:      {http.StatusConflict, ExitConflict},
	CodePlanChanged:     {http.StatusConflict, ExitConflict},
	CodeCorrupt:         {http.StatusInternalServerError, ExitDegraded},
}

// ErrRunning is returned by Listen when another daemon answers on the socket.
var ErrRunning = errors.New("meshd already runs")

// ErrBroken is returned by streaming calls whose daemon went away in the
// middle; the caller may resume at the last index.
var ErrBroken = errors.New("the stream from meshd broke off")

// An Error is an error that crosses the API.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"` // a sentence, without its full stop
	Next    string `json:"next"`    // what to do, likewise; may be empty
}

// Errorf makes an Error with a formatted sentence.
func Errorf(code Code, next, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Next: next}
}

// Error implements error: the sentence, then the next step.
func (e *Error) Error() string {
	if e.Next == "" {
		return e.Message
	}
	return e.Message + "; " + e.Next
}

// Status is the HTTP status of the error.
func (e *Error) Status() int {
	if c, ok := codes[e.Code]; ok {
		return c.status
	}
	return http.StatusInternalServerError
}

// ExitCode gives the exit code of a program that ends because of err: that of
// its Error, ExitOK for nil, ExitNotRunning for ErrBroken, ExitUnexpected for
// errors of other kinds.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if e, ok := errors.AsType[*Error](err); ok {
		if c, ok := codes[e.Code]; ok {
			return c.exit
		}
	}
	if errors.Is(err, ErrBroken) {
		return ExitNotRunning
	}
	return ExitUnexpected
}
